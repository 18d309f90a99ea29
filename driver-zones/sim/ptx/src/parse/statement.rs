//! Instructions: a guard, a mnemonic with modifiers, operands.

use super::cursor::{Cursor, parse_integer};
use super::lexer::Token;
use super::{PtxError, shown};

const MAX_OPERANDS: usize = 12;
const MAX_MODIFIERS: usize = 12;
const MAX_VECTOR: usize = 8;
/// Arguments of one call.
const MAX_ARGUMENTS: usize = 8192;

/// An operand as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    /// A register, a symbol or a special register (`part` is the `x` of `%tid.x`),
    /// with an offset (`symbol+8`), negated (`!%p1`), or both at once never.
    Name { name: &'a str, part: Option<&'a str>, offset: i64, negated: bool },
    /// An integer, in two's complement when it was negative.
    Integer(u64),
    /// Bits of a single-precision literal (`0f3F800000`).
    Single(u32),
    /// Bits of a double-precision literal (`0d…`, or decimal).
    Double(u64),
    /// `[base+offset]`; no base when the address is a number.
    Memory { base: Option<&'a str>, offset: i64 },
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `(a, b)`: the results or the arguments of a call.
    List(Vec<&'a str>),
}

/// One instruction as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Statement<'a> {
    pub(crate) line: u32,
    /// Guard predicate, and whether it is negated.
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) mnemonic: &'a str,
    pub(crate) modifiers: Vec<&'a str>,
    pub(crate) operands: Vec<Operand<'a>>,
    /// The `%p` of a first operand `%r|%p`.
    pub(crate) second: Option<Operand<'a>>,
}

impl<'a> Statement<'a> {
    /// The opcode as it was written.
    pub(crate) fn opcode(&self) -> String {
        let mut text = shown(self.mnemonic);
        for modifier in &self.modifiers {
            text.push('.');
            text.push_str(&shown(modifier));
        }
        text
    }

    /// Parses an instruction; the mnemonic is the current token, unless there is
    /// a guard. Takes the `;` too.
    pub(crate) fn parse(cursor: &mut Cursor<'a>) -> Result<Self, PtxError> {
        let line = cursor.line;
        let guard = if cursor.accept('@')? {
            let negated = cursor.accept('!')?;
            Some((cursor.word("a predicate register")?, negated))
        } else {
            None
        };
        let mnemonic = cursor.word("an instruction")?;
        Self::parse_rest(cursor, line, guard, mnemonic)
    }

    /// Parses what follows the mnemonic.
    pub(crate) fn parse_rest(
        cursor: &mut Cursor<'a>,
        line: u32,
        guard: Option<(&'a str, bool)>,
        mnemonic: &'a str,
    ) -> Result<Self, PtxError> {
        let mut statement = Self {
            line,
            guard,
            mnemonic,
            modifiers: Vec::new(),
            operands: Vec::new(),
            second: None,
        };
        while let Token::Dot(modifier) = cursor.token {
            if statement.modifiers.len() == MAX_MODIFIERS {
                return cursor.error("the instruction has too many modifiers");
            }
            statement.modifiers.push(modifier);
            cursor.advance()?;
        }
        // Before its operands, which have forms of their own.
        if let Some(what) = refused(mnemonic) {
            let opcode = statement.opcode();
            let message = format!("unknown instruction '{opcode}': {what} are not supported");
            return Err(PtxError::new(line, message));
        }
        if cursor.accept(';')? {
            return Ok(statement);
        }
        loop {
            if statement.operands.len() == MAX_OPERANDS {
                return cursor.error("the instruction has too many operands");
            }
            if cursor.token == Token::Punct('(') {
                if mnemonic != "call" {
                    let opcode = statement.opcode();
                    return cursor.error(format!("unknown instruction '{opcode}' with a list"));
                }
                statement.operands.push(list(cursor)?);
            } else {
                statement.operands.push(operand(cursor)?);
            }
            if cursor.token == Token::Punct('|') && statement.operands.len() == 1 {
                cursor.advance()?;
                statement.second = Some(operand(cursor)?);
            }
            if cursor.accept(';')? {
                return Ok(statement);
            }
            if !cursor.accept(',')? {
                return cursor.unexpected("',' or ';'");
            }
        }
    }
}

/// What a mnemonic belongs to that the machine does not have.
fn refused(mnemonic: &str) -> Option<&'static str> {
    Some(match mnemonic {
        "tex" | "tld4" | "txq" | "istypep" => "textures",
        "suld" | "sust" | "sured" | "suq" => "surfaces",
        "mma" | "wmma" | "wgmma" | "tcgen05" | "ldmatrix" | "stmatrix" | "movmatrix" => {
            "matrix instructions"
        }
        "mapa" | "getctarank" => "clusters",
        "mbarrier" => "asynchronous barriers",
        "alloca" | "stacksave" | "stackrestore" => "stacks of variable size",
        _ => return None,
    })
}

fn list<'a>(cursor: &mut Cursor<'a>) -> Result<Operand<'a>, PtxError> {
    cursor.expect('(')?;
    let mut names = Vec::new();
    while !cursor.accept(')')? {
        if names.len() == MAX_ARGUMENTS {
            return cursor.error(format!("a call has at most {MAX_ARGUMENTS} arguments"));
        }
        if !names.is_empty() {
            cursor.expect(',')?;
        }
        names.push(cursor.word("a parameter's name")?);
    }
    Ok(Operand::List(names))
}

fn operand<'a>(cursor: &mut Cursor<'a>) -> Result<Operand<'a>, PtxError> {
    if cursor.accept('{')? {
        let mut elements = Vec::new();
        loop {
            if elements.len() == MAX_VECTOR {
                return cursor.error("a vector operand has at most 8 elements");
            }
            elements.push(scalar(cursor)?);
            if cursor.accept('}')? {
                return Ok(Operand::Vector(elements));
            }
            cursor.expect(',')?;
        }
    }
    if cursor.accept('[')? {
        let base = match cursor.token {
            Token::Word(name) => {
                cursor.advance()?;
                Some(name)
            }
            _ => None,
        };
        let offset = if base.is_none() { signed(cursor)? } else { offset(cursor)? };
        cursor.expect(']')?;
        return Ok(Operand::Memory { base, offset });
    }
    scalar(cursor)
}

fn scalar<'a>(cursor: &mut Cursor<'a>) -> Result<Operand<'a>, PtxError> {
    match cursor.token {
        Token::Punct('!') => {
            cursor.advance()?;
            let name = cursor.word("a predicate register")?;
            Ok(Operand::Name { name, part: None, offset: 0, negated: true })
        }
        Token::Word(name) => {
            cursor.advance()?;
            let part = match cursor.token {
                Token::Dot(part) => {
                    cursor.advance()?;
                    Some(part)
                }
                _ => None,
            };
            let offset = offset(cursor)?;
            Ok(Operand::Name { name, part, offset, negated: false })
        }
        Token::Number(_) | Token::Punct('-' | '+') => number(cursor),
        _ => cursor.unexpected("an operand"),
    }
}

pub(super) fn offset(cursor: &mut Cursor<'_>) -> Result<i64, PtxError> {
    match cursor.token {
        Token::Punct('+') => {
            cursor.advance()?;
            signed(cursor)
        }
        Token::Punct('-') => signed(cursor),
        _ => Ok(0),
    }
}

fn signed(cursor: &mut Cursor<'_>) -> Result<i64, PtxError> {
    let negative = cursor.accept('-')?;
    let line = cursor.line;
    let value = cursor.unsigned("an offset in bytes")?;
    let value = i64::try_from(value)
        .map_err(|_| PtxError::new(line, format!("the offset {value} is too large")))?;
    Ok(if negative { -value } else { value })
}

/// A literal, signed or not, integer or floating point.
pub(crate) fn number<'a>(cursor: &mut Cursor<'a>) -> Result<Operand<'a>, PtxError> {
    let negative = !cursor.accept('+')? && cursor.accept('-')?;
    let Token::Number(text) = cursor.token else { return cursor.unexpected("a number") };
    let Some(value) = literal(text) else {
        return cursor.error(format!("'{}' is not a number that fits 64 bits", shown(text)));
    };
    cursor.advance()?;
    Ok(match value {
        Operand::Integer(value) if negative => Operand::Integer(value.wrapping_neg()),
        Operand::Single(bits) if negative => Operand::Single(bits ^ (1 << 31)),
        Operand::Double(bits) if negative => Operand::Double(bits ^ (1 << 63)),
        other => other,
    })
}

fn literal<'a>(text: &str) -> Option<Operand<'a>> {
    let digits = |count: usize| {
        let hex = text.get(2..).filter(|hex| hex.len() == count)?;
        hex.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(hex)
    };
    match text.as_bytes() {
        [b'0', b'f' | b'F', ..] => Some(Operand::Single(u32::from_str_radix(digits(8)?, 16).ok()?)),
        [b'0', b'd' | b'D', ..] => {
            Some(Operand::Double(u64::from_str_radix(digits(16)?, 16).ok()?))
        }
        bytes if bytes.contains(&b'.') || is_exponent(text) => {
            let value: f64 = text.parse().ok()?;
            Some(Operand::Double(value.to_bits()))
        }
        _ => parse_integer(text).map(Operand::Integer),
    }
}

fn is_exponent(text: &str) -> bool {
    let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    !hexadecimal && text.contains(['e', 'E'])
}
