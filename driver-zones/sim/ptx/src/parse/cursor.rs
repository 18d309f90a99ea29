//! The current token, and the small expectations that a grammar is made of.

use super::lexer::{Lexer, Token};
use super::{PtxError, shown};

#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    lexer: Lexer<'a>,
    /// The token that is looked at.
    pub(crate) token: Token<'a>,
    /// Its line.
    pub(crate) line: u32,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(source: &'a str) -> Result<Self, PtxError> {
        let mut cursor = Self { lexer: Lexer::new(source), token: Token::End, line: 1 };
        cursor.advance()?;
        Ok(cursor)
    }

    pub(crate) fn advance(&mut self) -> Result<(), PtxError> {
        self.token = self.lexer.next()?;
        self.line = self.lexer.line();
        Ok(())
    }

    /// How much of the text was read.
    pub(crate) fn position(&self) -> usize {
        self.lexer.position()
    }

    pub(crate) fn error<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError::new(self.line, message))
    }

    pub(crate) fn unexpected<T>(&self, wanted: &str) -> Result<T, PtxError> {
        self.error(format!("expected {wanted}, found {}", self.token.show()))
    }

    /// Drops what is left of the current token's line.
    pub(crate) fn skip_line(&mut self) -> Result<(), PtxError> {
        self.lexer.skip_line();
        self.advance()
    }

    /// Drops tokens up to and including the next `;`.
    pub(crate) fn skip_statement(&mut self) -> Result<(), PtxError> {
        while !self.accept(';')? {
            if self.token == Token::End {
                return self.unexpected("';'");
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Drops a block; the current token is its `{`.
    pub(crate) fn skip_block(&mut self) -> Result<(), PtxError> {
        let opened_at = self.line;
        self.expect('{')?;
        let mut depth = 1_u64;
        while depth > 0 {
            match self.token {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') => depth -= 1,
                Token::End => return Err(PtxError::new(opened_at, "a '{' is never closed")),
                _ => {}
            }
            self.advance()?;
        }
        Ok(())
    }

    pub(crate) fn accept(&mut self, symbol: char) -> Result<bool, PtxError> {
        if self.token == Token::Punct(symbol) {
            self.advance()?;
            return Ok(true);
        }
        Ok(false)
    }

    pub(crate) fn expect(&mut self, symbol: char) -> Result<(), PtxError> {
        if self.accept(symbol)? { Ok(()) } else { self.unexpected(&format!("'{symbol}'")) }
    }

    pub(crate) fn word(&mut self, wanted: &str) -> Result<&'a str, PtxError> {
        let Token::Word(word) = self.token else { return self.unexpected(wanted) };
        self.advance()?;
        Ok(word)
    }

    pub(crate) fn dot(&mut self, wanted: &str) -> Result<&'a str, PtxError> {
        let Token::Dot(word) = self.token else { return self.unexpected(wanted) };
        self.advance()?;
        Ok(word)
    }

    /// A number without sign that fits 64 bits.
    pub(crate) fn unsigned(&mut self, wanted: &str) -> Result<u64, PtxError> {
        let Token::Number(text) = self.token else { return self.unexpected(wanted) };
        match parse_integer(text) {
            Some(value) => {
                self.advance()?;
                Ok(value)
            }
            None => self.error(format!("expected {wanted}, found '{}'", shown(text))),
        }
    }

    /// A number without sign that fits 32 bits.
    pub(crate) fn unsigned32(&mut self, wanted: &str) -> Result<u32, PtxError> {
        let line = self.line;
        let value = self.unsigned(wanted)?;
        u32::try_from(value).map_err(|_| {
            PtxError::new(line, format!("expected {wanted}, but {value} is too large"))
        })
    }
}

/// PTX integers: decimal, `0x`, `0b` and octal, with an optional `U`.
pub(crate) fn parse_integer(text: &str) -> Option<u64> {
    let digits = text.strip_suffix(['U', 'u']).unwrap_or(text);
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, digits),
        _ => (10, digits),
    };
    // Rust would take a sign here, PTX does not.
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if valid { u64::from_str_radix(digits, radix).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::parse_integer;

    #[test]
    fn integers_in_every_base() {
        assert_eq!(parse_integer("0"), Some(0));
        assert_eq!(parse_integer("017"), Some(15));
        assert_eq!(parse_integer("0x1fU"), Some(31));
        assert_eq!(parse_integer("0b101"), Some(5));
        assert_eq!(parse_integer("18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse_integer("18446744073709551616"), None);
        assert_eq!(parse_integer("9q"), None);
        assert_eq!(parse_integer("0x"), None);
        assert_eq!(parse_integer("0x+1"), None);
    }
}
