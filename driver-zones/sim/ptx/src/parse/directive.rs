//! The module's directives, and the walk over a kernel's body.

use super::cursor::Cursor;
use super::lexer::Token;
use super::statement::{Statement, number};
use super::{MAX_SOURCE_BYTES, PtxError, shown};
use crate::ir::{Kernel, Module, Type};
use crate::lower::{
    Declaration, FunctionBuilder, ModuleScope, RegisterDeclaration, VariableSpace, encode,
};

/// Deepest nesting of `{ }` in a body. nvcc nests two deep.
const MAX_DEPTH: usize = 64;
const MAX_KERNELS: usize = 65_536;
/// Longest list of names in one declaration.
const MAX_LIST: usize = 65_536;

pub(crate) fn parse_module(source: &str) -> Result<Module, PtxError> {
    if source.len() > MAX_SOURCE_BYTES {
        let limit = MAX_SOURCE_BYTES >> 20;
        return Err(PtxError::new(1, format!("the text is larger than {limit} MiB")));
    }
    let mut parser = Parser {
        cursor: Cursor::new(source)?,
        scope: ModuleScope::default(),
        kernels: Vec::new(),
        target: None,
        version: false,
    };
    while parser.cursor.token != Token::End {
        parser.item()?;
    }
    let Some(target) = parser.target else {
        return parser.cursor.error("the text has no .target directive");
    };
    if !parser.version {
        return parser.cursor.error("the text has no .version directive");
    }
    Ok(Module { kernels: parser.kernels, globals: parser.scope.into_globals(), target })
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    scope: ModuleScope<'a>,
    kernels: Vec<Kernel>,
    target: Option<(u32, u32)>,
    version: bool,
}

impl<'a> Parser<'a> {
    fn item(&mut self) -> Result<(), PtxError> {
        let mut external = false;
        loop {
            let Token::Dot(directive) = self.cursor.token else {
                return self.cursor.unexpected("a directive");
            };
            match directive {
                "extern" => external = true,
                "visible" | "weak" | "common" => {}
                _ => return self.directive(directive, external),
            }
            self.cursor.advance()?;
        }
    }

    fn directive(&mut self, directive: &str, external: bool) -> Result<(), PtxError> {
        match directive {
            "version" => {
                self.cursor.advance()?;
                let Token::Number(_) = self.cursor.token else {
                    return self.cursor.unexpected("the PTX version");
                };
                self.version = true;
                self.cursor.advance()
            }
            "target" => self.target(),
            "address_size" => {
                self.cursor.advance()?;
                if self.cursor.token != Token::Number("64") {
                    return self.cursor.unexpected("64 (other address sizes are not supported)");
                }
                self.cursor.advance()
            }
            "file" | "loc" => self.cursor.skip_line(),
            "section" => {
                while self.cursor.token != Token::Punct('{') {
                    if self.cursor.token == Token::End {
                        return self.cursor.unexpected("'{'");
                    }
                    self.cursor.advance()?;
                }
                self.cursor.skip_block()
            }
            "pragma" => self.cursor.skip_statement(),
            "entry" => self.entry(),
            "func" => self.function(),
            "global" => self.variables(VariableSpace::Global, external),
            "const" => self.variables(VariableSpace::Constant, external),
            "shared" => self.variables(VariableSpace::Shared, external),
            _ => self.cursor.error(format!("unknown directive '.{}'", shown(directive))),
        }
    }

    fn target(&mut self) -> Result<(), PtxError> {
        self.cursor.advance()?;
        let line = self.cursor.line;
        let name = self.cursor.word("a target such as sm_75")?;
        let digits = name.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
        let number: Option<u32> = digits.and_then(|digits| digits.parse().ok());
        match number {
            Some(number @ 20..1000) => self.target = Some((number / 10, number % 10)),
            _ => {
                return Err(PtxError::new(line, format!("unknown target '{}'", shown(name))));
            }
        }
        while self.cursor.accept(',')? {
            let line = self.cursor.line;
            let option = self.cursor.word("a target option")?;
            if !matches!(option, "debug" | "texmode_unified" | "texmode_independent") {
                let message = format!("unknown target option '{}'", shown(option));
                return Err(PtxError::new(line, message));
            }
        }
        Ok(())
    }

    /// A device function. nvcc inlines what a kernel calls; what is left is not
    /// called, and `call` itself is refused.
    fn function(&mut self) -> Result<(), PtxError> {
        loop {
            match self.cursor.token {
                Token::Punct('{') => return self.cursor.skip_block(),
                Token::Punct(';') => return self.cursor.advance(),
                Token::End => return self.cursor.unexpected("the function's body"),
                _ => self.cursor.advance()?,
            }
        }
    }

    fn variables(&mut self, space: VariableSpace, external: bool) -> Result<(), PtxError> {
        self.cursor.advance()?;
        let cursor = &mut self.cursor;
        for declaration in declarations(cursor, space)? {
            self.scope.declare(declaration, external)?;
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<(), PtxError> {
        self.cursor.advance()?;
        let line = self.cursor.line;
        let name = self.cursor.word("the kernel's name")?;
        if self.kernels.len() == MAX_KERNELS {
            return Err(PtxError::new(line, "the text has too many kernels"));
        }
        self.scope.declare_kernel(name, line)?;
        let mut function = FunctionBuilder::new(&self.scope, name);
        if self.cursor.accept('(')? && !self.cursor.accept(')')? {
            loop {
                let declaration = parameter(&mut self.cursor)?;
                function.parameter(declaration)?;
                if self.cursor.accept(')')? {
                    break;
                }
                self.cursor.expect(',')?;
            }
        }
        loop {
            match self.cursor.token {
                Token::Dot(directive) => tuning(&mut self.cursor, &mut function, directive)?,
                Token::Punct(';') => {
                    // A forward declaration; the body comes later.
                    self.scope.forget_kernel(name);
                    return self.cursor.advance();
                }
                _ => break,
            }
        }
        body(&mut self.cursor, &mut function)?;
        self.kernels.push(function.finish()?);
        Ok(())
    }
}

/// `.maxntid` and its like, between a kernel's parameters and its body.
fn tuning(
    cursor: &mut Cursor<'_>,
    function: &mut FunctionBuilder<'_, '_>,
    directive: &str,
) -> Result<(), PtxError> {
    let line = cursor.line;
    cursor.advance()?;
    match directive {
        "maxntid" | "reqntid" => {
            let mut threads = u64::from(cursor.unsigned32("a number of threads")?);
            while cursor.accept(',')? {
                let more = u64::from(cursor.unsigned32("a number of threads")?);
                threads = threads.saturating_mul(more);
            }
            function.limit_threads(threads, line)
        }
        "minnctapersm" | "maxnctapersm" | "maxnreg" => {
            cursor.unsigned32("a number")?;
            Ok(())
        }
        "noreturn" => Ok(()),
        "pragma" => cursor.skip_statement(),
        _ => Err(PtxError::new(line, format!("unknown directive '.{}'", shown(directive)))),
    }
}

fn body<'a>(
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
    if cursor.token != Token::Dot("branchtargets") {
        return function.label(name, line);
    }
    cursor.advance()?;
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
        "shared" | "local" => {
            let space =
                if directive == "shared" { VariableSpace::Shared } else { VariableSpace::Local };
            cursor.advance()?;
            for declaration in declarations(cursor, space)? {
                function.variable(declaration)?;
            }
            Ok(())
        }
        "param" => cursor.error("calls of device functions are not supported"),
        _ => cursor.error(format!("unknown directive '.{}' in a kernel", shown(directive))),
    }
}

fn typed(cursor: &mut Cursor<'_>) -> Result<Type, PtxError> {
    let line = cursor.line;
    let name = cursor.dot("a type")?;
    Type::named(name).ok_or_else(|| PtxError::new(line, format!("unknown type '.{}'", shown(name))))
}

fn registers<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<RegisterDeclaration<'a>>, PtxError> {
    let ty = typed(cursor)?;
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

fn parameter<'a>(cursor: &mut Cursor<'a>) -> Result<Declaration<'a>, PtxError> {
    if cursor.token != Token::Dot("param") {
        return cursor.unexpected("'.param'");
    }
    cursor.advance()?;
    declaration(cursor, VariableSpace::Param)
}

fn declarations<'a>(
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

/// The bytes of `= {1, 2}`.
fn initializer(cursor: &mut Cursor<'_>, ty: Type) -> Result<Option<Vec<u8>>, PtxError> {
    if !cursor.accept('=')? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let mut element = |cursor: &mut Cursor<'_>| -> Result<(), PtxError> {
        let line = cursor.line;
        let value = number(cursor)?;
        let bits = encode(&value, ty).map_err(|message| PtxError::new(line, message))?;
        bytes.extend_from_slice(&bits.to_le_bytes()[..ty.bytes() as usize]);
        Ok(())
    };
    if !cursor.accept('{')? {
        element(cursor)?;
        return Ok(Some(bytes));
    }
    while !cursor.accept('}')? {
        element(cursor)?;
        if cursor.token != Token::Punct('}') {
            cursor.expect(',')?;
        }
    }
    Ok(Some(bytes))
}
