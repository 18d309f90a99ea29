//! Variables and registers as they are declared.

use super::cursor::Cursor;
use super::initializer::initializer;
use super::lexer::Token;
use super::{PtxError, shown};
use crate::ir::Type;
use crate::lower::{Declaration, RegisterDeclaration, VariableSpace};

/// Longest list of names in one declaration.
const MAX_LIST: usize = 65_536;

fn typed(cursor: &mut Cursor<'_>) -> Result<Type, PtxError> {
    let line = cursor.line;
    let name = cursor.dot("a type")?;
    Type::named(name).ok_or_else(|| PtxError::new(line, format!("unknown type '.{}'", shown(name))))
}

pub(super) fn registers<'a>(
    cursor: &mut Cursor<'a>,
) -> Result<Vec<RegisterDeclaration<'a>>, PtxError> {
    // Of instructions only `mov` and `atom` know it, and variables have other types.
    let ty = match cursor.token {
        Token::Dot("b128") => {
            cursor.advance()?;
            Type::B128
        }
        _ => typed(cursor)?,
    };
    let mut list = Vec::new();
    loop {
        if list.len() == MAX_LIST {
            return cursor.error(format!("more than {MAX_LIST} registers in one declaration"));
        }
        let line = cursor.line;
        let name = cursor.word("a register")?;
        let count = if cursor.accept('<')? {
            let count = cursor.unsigned32("a number of registers")?;
            cursor.expect('>')?;
            Some(count)
        } else {
            None
        };
        list.push(RegisterDeclaration { name, count, ty, line });
        if cursor.accept(';')? {
            return Ok(list);
        }
        cursor.expect(',')?;
    }
}

pub(super) fn parameter<'a>(cursor: &mut Cursor<'a>) -> Result<Declaration<'a>, PtxError> {
    if cursor.token != Token::Dot("param") {
        return cursor.unexpected("'.param'");
    }
    cursor.advance()?;
    declaration(cursor, VariableSpace::Param)
}

pub(super) fn declarations<'a>(
    cursor: &mut Cursor<'a>,
    space: VariableSpace,
) -> Result<Vec<Declaration<'a>>, PtxError> {
    let first = declaration(cursor, space)?;
    let mut list = vec![first];
    while cursor.accept(',')? {
        if list.len() == MAX_LIST {
            return cursor.error(format!("more than {MAX_LIST} variables in one declaration"));
        }
        let Declaration { space, ty, vector, align, .. } = list[0];
        let line = cursor.line;
        let name = cursor.word("a variable's name")?;
        let elements = dimensions(cursor)?;
        let init = initializer(cursor, ty)?;
        list.push(Declaration { name, line, space, ty, vector, align, elements, init });
    }
    cursor.expect(';')?;
    Ok(list)
}

/// `.align 4 .v2 .b8 name[10] = {1, 2}`, in any order that PTX allows.
fn declaration<'a>(
    cursor: &mut Cursor<'a>,
    space: VariableSpace,
) -> Result<Declaration<'a>, PtxError> {
    let line = cursor.line;
    let mut align = None;
    let mut vector = 1;
    let mut ty = None;
    let mut pointer = false;
    while let Token::Dot(word) = cursor.token {
        match word {
            "align" => {
                cursor.advance()?;
                let value = u64::from(cursor.unsigned32("an alignment")?);
                if !value.is_power_of_two() {
                    return cursor.error(format!("the alignment {value} is not a power of two"));
                }
                // Of a pointer parameter, this is the alignment of what it points to.
                if !pointer {
                    align = Some(value);
                }
                continue;
            }
            "v2" => vector = 2,
            "v4" => vector = 4,
            "ptr" if space == VariableSpace::Param => pointer = true,
            "global" | "const" | "shared" | "local" if pointer => {}
            _ => {
                ty = Some(typed(cursor)?);
                continue;
            }
        }
        cursor.advance()?;
    }
    let Some(ty) = ty else { return cursor.unexpected("a type") };
    if ty == Type::Pred {
        return cursor.error("a variable cannot be a predicate");
    }
    let name = cursor.word("a variable's name")?;
    let elements = dimensions(cursor)?;
    let init = initializer(cursor, ty)?;
    Ok(Declaration { name, line, space, ty, vector, align, elements, init })
}

/// `[4][4]` is 16, `[]` is none, nothing is 1.
fn dimensions(cursor: &mut Cursor<'_>) -> Result<Option<u64>, PtxError> {
    let mut elements = 1_u64;
    while cursor.accept('[')? {
        if cursor.accept(']')? {
            return Ok(None);
        }
        let line = cursor.line;
        let extent = cursor.unsigned("an array's length")?;
        elements = elements
            .checked_mul(extent)
            .ok_or_else(|| PtxError::new(line, "the array is too large"))?;
        cursor.expect(']')?;
    }
    Ok(Some(elements))
}
