//! Tokens of PTX, made one at a time: a hostile text costs no memory here.

use super::{PtxError, shown};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// An identifier: a mnemonic, a register, a symbol.
    Word(&'a str),
    /// A dot and what follows it: a directive, a modifier, a type.
    Dot(&'a str),
    /// A number as it was written.
    Number(&'a str),
    /// What is between quotes.
    Text(&'a str),
    Punct(char),
    End,
}

impl Token<'_> {
    /// The token as a message shows it.
    pub(crate) fn show(self) -> String {
        match self {
            Token::Word(text) | Token::Number(text) => format!("'{}'", shown(text)),
            Token::Dot(text) => format!("'.{}'", shown(text)),
            Token::Text(text) => format!("the string \"{}\"", shown(text)),
            Token::Punct(symbol) => format!("'{symbol}'"),
            Token::End => "the end of the text".to_owned(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        Self { source, at: 0, line: 1 }
    }

    /// Line of the next token once white space before it has been skipped.
    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    /// How much of the text was read.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.source.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, message: impl Into<String>) -> PtxError {
        PtxError::new(self.line, message)
    }

    fn bump(&mut self) {
        if self.peek(0) == b'\n' {
            self.line = self.line.saturating_add(1);
        }
        self.at += 1;
    }

    /// Skips to the end of the line, for directives that end there.
    pub(crate) fn skip_line(&mut self) {
        while self.at < self.source.len() && self.peek(0) != b'\n' {
            self.at += 1;
        }
    }

    fn skip_blank(&mut self) -> Result<(), PtxError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\r' | b'\n', _) => self.bump(),
                // Drivers take PTX as a C string; a terminating NUL may be handed along.
                (0, _) if self.at < self.source.len() => {
                    self.at = self.source.len();
                }
                (b'/', b'/') => self.skip_line(),
                (b'/', b'*') => {
                    let start = self.line;
                    self.at += 2;
                    while (self.peek(0), self.peek(1)) != (b'*', b'/') {
                        if self.at >= self.source.len() {
                            return Err(PtxError::new(start, "a comment is never closed"));
                        }
                        self.bump();
                    }
                    self.at += 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.at < self.source.len() && accept(self.peek(0)) {
            self.at += 1;
        }
        &self.source[start..self.at]
    }

    pub(crate) fn next(&mut self) -> Result<Token<'a>, PtxError> {
        self.skip_blank()?;
        if self.at >= self.source.len() {
            return Ok(Token::End);
        }
        let start = self.at;
        match self.peek(0) {
            b'.' => {
                self.at += 1;
                let word = self.take_while(|byte| is_word(byte) || byte == b':');
                if word.is_empty() {
                    return Err(self.error("a name must follow '.'"));
                }
                Ok(Token::Dot(word))
            }
            byte if byte.is_ascii_digit() => Ok(Token::Number(self.number())),
            b'%' | b'_' | b'$' => {
                self.at += 1;
                self.take_while(is_word);
                Ok(Token::Word(&self.source[start..self.at]))
            }
            byte if byte.is_ascii_alphabetic() => Ok(Token::Word(self.take_while(is_word))),
            b'"' => {
                self.at += 1;
                let text = self.take_while(|byte| byte != b'"' && byte != b'\n');
                if self.peek(0) != b'"' {
                    return Err(self.error("a string is not closed on its line"));
                }
                self.at += 1;
                Ok(Token::Text(text))
            }
            byte if byte.is_ascii_punctuation() => {
                self.at += 1;
                Ok(Token::Punct(char::from(byte)))
            }
            _ => Err(self.error("the text holds a character that PTX does not know")),
        }
    }

    fn number(&mut self) -> &'a str {
        let start = self.at;
        let plain = !matches!((self.peek(0), self.peek(1)), (b'0', b'x' | b'X' | b'f' | b'F'))
            && !matches!((self.peek(0), self.peek(1)), (b'0', b'd' | b'D'));
        self.take_while(|byte| byte.is_ascii_alphanumeric());
        if plain && self.peek(0) == b'.' {
            self.at += 1;
            self.take_while(|byte| byte.is_ascii_alphanumeric());
        }
        let exponent = matches!(self.source.as_bytes()[self.at - 1], b'e' | b'E');
        if plain && exponent && matches!(self.peek(0), b'+' | b'-') {
            self.at += 1;
            self.take_while(|byte| byte.is_ascii_digit());
        }
        &self.source[start..self.at]
    }
}
