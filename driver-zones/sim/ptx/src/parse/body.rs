//! The walk over the body of a kernel or of a device function.

use super::cursor::Cursor;
use super::declaration::{declarations, registers};
use super::lexer::Token;
use super::statement::Statement;
use super::{PtxError, shown};
use crate::lower::{FunctionBuilder, VariableSpace};

/// Deepest nesting of `{ }` in a body. nvcc nests two deep.
const MAX_DEPTH: usize = 64;

pub(super) fn body<'a>(
    cursor: &mut Cursor<'a>,
    function: &mut FunctionBuilder<'_, 'a>,
) -> Result<(), PtxError> {
    cursor.expect('{')?;
    let mut depth = 1;
    while depth > 0 {
        match cursor.token {
            Token::Punct('{') => {
                if depth == MAX_DEPTH {
                    return cursor.error(format!("blocks are nested more than {MAX_DEPTH} deep"));
                }
                function.open_scope(cursor.line)?;
                cursor.advance()?;
                depth += 1;
            }
            Token::Punct('}') => {
                cursor.advance()?;
                function.close_scope();
                depth -= 1;
            }
            Token::Dot(directive) => body_directive(cursor, function, directive)?,
            Token::Punct(';') => cursor.advance()?,
            Token::Punct('@') => function.statement(&Statement::parse(cursor)?)?,
            Token::Word(name) => {
                let line = cursor.line;
                cursor.advance()?;
                if cursor.accept(':')? {
                    label(cursor, function, name, line)?;
                } else {
                    let statement = Statement::parse_rest(cursor, line, None, name)?;
                    function.statement(&statement)?;
                }
            }
            _ => return cursor.unexpected("an instruction"),
        }
    }
    Ok(())
}

/// What follows `name:`; either a branch table or any instruction.
fn label<'a>(
    cursor: &mut Cursor<'a>,
    function: &mut FunctionBuilder<'_, 'a>,
    name: &'a str,
    line: u32,
) -> Result<(), PtxError> {
    const MAX_TARGETS: usize = 65_536;
    match cursor.token {
        // What an indirect call passes is known from the call itself.
        Token::Dot("callprototype" | "calltargets") => return cursor.skip_statement(),
        Token::Dot("branchtargets") => cursor.advance()?,
        _ => return function.label(name, line),
    }
    let mut targets = Vec::new();
    loop {
        if targets.len() == MAX_TARGETS {
            return cursor.error("the branch table is too long");
        }
        targets.push(cursor.word("a label")?);
        if cursor.accept(';')? {
            return function.branch_table(name, targets, line);
        }
        cursor.expect(',')?;
    }
}

fn body_directive<'a>(
    cursor: &mut Cursor<'a>,
    function: &mut FunctionBuilder<'_, 'a>,
    directive: &str,
) -> Result<(), PtxError> {
    match directive {
        "loc" | "file" => cursor.skip_line(),
        "pragma" => cursor.skip_statement(),
        "reg" => {
            cursor.advance()?;
            for register in registers(cursor)? {
                function.register(register)?;
            }
            Ok(())
        }
        "shared" | "local" | "param" => {
            let space = match directive {
                "shared" => VariableSpace::Shared,
                "local" => VariableSpace::Local,
                _ => VariableSpace::Param,
            };
            cursor.advance()?;
            for declaration in declarations(cursor, space)? {
                function.variable(declaration)?;
            }
            Ok(())
        }
        _ => cursor.error(format!("unknown directive '.{}' in a kernel", shown(directive))),
    }
}
