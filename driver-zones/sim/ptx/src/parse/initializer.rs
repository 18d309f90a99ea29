//! Initial values of module variables: numbers, and addresses of other variables.

use super::cursor::Cursor;
use super::lexer::Token;
use super::statement::number;
use super::{Operand, PtxError};
use crate::ir::Type;
use crate::lower::encode;

/// A variable's initial value as it was written.
#[derive(Debug, Default)]
pub(crate) struct Initializer<'a> {
    /// The first bytes; those of addresses are zero.
    pub(crate) bytes: Vec<u8>,
    pub(crate) addresses: Vec<AddressValue<'a>>,
}

/// An address among initial values, of a variable or a function by name.
#[derive(Debug)]
pub(crate) struct AddressValue<'a> {
    /// Where in the value it goes.
    pub(crate) offset: usize,
    pub(crate) line: u32,
    pub(crate) name: &'a str,
    pub(crate) addend: i64,
    /// How many of the address's bytes go there, and which is the first of them.
    pub(crate) bytes: u8,
    pub(crate) first: u8,
}

/// `= {1, name+4, generic(name)}`, if there is one.
pub(super) fn initializer<'a>(
    cursor: &mut Cursor<'a>,
    ty: Type,
) -> Result<Option<Initializer<'a>>, PtxError> {
    if !cursor.accept('=')? {
        return Ok(None);
    }
    let mut value = Initializer::default();
    if !cursor.accept('{')? {
        element(cursor, ty, &mut value)?;
        return Ok(Some(value));
    }
    while !cursor.accept('}')? {
        if cursor.token == Token::Punct('{') {
            return cursor.error("values within values are not supported");
        }
        element(cursor, ty, &mut value)?;
        if cursor.token != Token::Punct('}') {
            cursor.expect(',')?;
        }
    }
    Ok(Some(value))
}

fn element<'a>(
    cursor: &mut Cursor<'a>,
    ty: Type,
    value: &mut Initializer<'a>,
) -> Result<(), PtxError> {
    let line = cursor.line;
    let wide = ty.bytes() == 8 && !ty.is_float();
    if let Token::Word(_) = cursor.token {
        if !wide {
            return cursor.error("an address needs a variable of 64-bit integers");
        }
        let (name, addend) = address(cursor)?;
        let offset = value.bytes.len();
        value.addresses.push(AddressValue { offset, line, name, addend, bytes: 8, first: 0 });
        value.bytes.extend([0; 8]);
        return Ok(());
    }
    let number = number(cursor)?;
    if let (Operand::Integer(mask), true) = (&number, cursor.accept('(')?) {
        // `0xFF00(name)` is one byte of an address.
        let first = (0..8_u8).find(|byte| *mask == 0xff << (8 * byte));
        let Some(first) = first.filter(|_| ty.bytes() == 1) else {
            return Err(PtxError::new(line, "a mask must take one byte of an address"));
        };
        let (name, addend) = address(cursor)?;
        cursor.expect(')')?;
        let offset = value.bytes.len();
        value.addresses.push(AddressValue { offset, line, name, addend, bytes: 1, first });
        value.bytes.push(0);
        return Ok(());
    }
    let bits = encode(&number, ty).map_err(|message| PtxError::new(line, message))?;
    value.bytes.extend_from_slice(&bits.to_le_bytes()[..ty.bytes() as usize]);
    Ok(())
}

/// `name`, `generic(name)`, either with an offset. Generic addresses of global and
/// constant memory are the addresses themselves.
fn address<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, i64), PtxError> {
    let mut name = cursor.word("a variable's name")?;
    if name == "generic" && cursor.accept('(')? {
        name = cursor.word("a variable's name")?;
        cursor.expect(')')?;
    }
    Ok((name, super::statement::offset(cursor)?))
}
