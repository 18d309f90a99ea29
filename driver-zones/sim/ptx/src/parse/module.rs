//! The module's directives. A first walk collects what is declared, a second one
//! lowers each kernel with the functions that it calls.

use super::body::body;
use super::cursor::Cursor;
use super::declaration::{declarations, parameter};
use super::lexer::Token;
use super::{MAX_SOURCE_BYTES, PtxError, shown};
use crate::ir::{Kernel, Module};
use crate::lower::{Declaration, FunctionBuilder, FunctionSource, ModuleScope, VariableSpace};

const MAX_KERNELS: usize = 65_536;
/// Most text of functions that is lowered, each time that a kernel needs it.
const MAX_LOWERED_BYTES: usize = 16 << 20;

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
    parser.scope.resolve_addresses()?;
    let Some(target) = parser.target else {
        return parser.cursor.error("the text has no .target directive");
    };
    if !parser.version {
        return parser.cursor.error("the text has no .version directive");
    }
    let mut lowered_bytes = 0;
    let mut kernels = Vec::new();
    for kernel in parser.kernels {
        kernels.push(lower_kernel(&parser.scope, kernel, &mut lowered_bytes)?);
    }
    Ok(Module { kernels, globals: parser.scope.into_globals(), target })
}

/// A kernel's name, and the text behind it.
struct KernelSource<'a> {
    name: &'a str,
    text: Cursor<'a>,
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    scope: ModuleScope<'a>,
    kernels: Vec<KernelSource<'a>>,
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

    /// A device function: its text is kept for the kernels that call it.
    fn function(&mut self) -> Result<(), PtxError> {
        self.cursor.advance()?;
        let results = self.cursor.clone();
        if self.cursor.token == Token::Punct('(') {
            self.skip_list()?;
        }
        let line = self.cursor.line;
        let name = self.cursor.word("the function's name")?;
        let params = self.cursor.clone();
        let number = self.scope.declare_function(name, line)?;
        loop {
            match self.cursor.token {
                Token::Punct('{') => {
                    let start = self.cursor.position();
                    self.cursor.skip_block()?;
                    let bytes = self.cursor.position() - start;
                    let source = FunctionSource { results, params, bytes };
                    return self.scope.define_function(number, source, line);
                }
                Token::Punct(';') => return self.cursor.advance(),
                Token::Punct('(') => self.skip_list()?,
                Token::Dot("noreturn") => self.cursor.advance()?,
                Token::Dot("pragma") => self.cursor.skip_statement()?,
                _ => return self.cursor.unexpected("the function's body"),
            }
        }
    }

    /// Skips what is between parentheses, of which there are none inside.
    fn skip_list(&mut self) -> Result<(), PtxError> {
        while !self.cursor.accept(')')? {
            if matches!(self.cursor.token, Token::End | Token::Punct('{' | '}' | ';')) {
                return self.cursor.unexpected("')'");
            }
            self.cursor.advance()?;
        }
        Ok(())
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
        let text = self.cursor.clone();
        loop {
            match self.cursor.token {
                Token::Punct('{') => break,
                // A forward declaration; the body comes later.
                Token::Punct(';') => return self.cursor.advance(),
                Token::Dot("pragma") => self.cursor.skip_statement()?,
                Token::End => return self.cursor.unexpected("the kernel's body"),
                _ => self.cursor.advance()?,
            }
        }
        self.scope.declare_kernel(name, line)?;
        self.kernels.push(KernelSource { name, text });
        self.cursor.skip_block()
    }
}

/// Lowers a kernel, and then each function that what was lowered may call.
fn lower_kernel(
    scope: &ModuleScope<'_>,
    source: KernelSource<'_>,
    lowered_bytes: &mut usize,
) -> Result<Kernel, PtxError> {
    let mut function = FunctionBuilder::new(scope, source.name);
    let mut cursor = source.text;
    for declaration in parameters(&mut cursor)? {
        function.parameter(declaration)?;
    }
    while let Token::Dot(directive) = cursor.token {
        tuning(&mut cursor, &mut function, directive)?;
    }
    body(&mut cursor, &mut function)?;
    function.end_unit()?;
    while let Some(callee) = function.begin_next_function()? {
        *lowered_bytes += callee.bytes;
        if *lowered_bytes > MAX_LOWERED_BYTES {
            let limit = MAX_LOWERED_BYTES >> 20;
            return function.error(format!(
                "the functions that kernels call, counted for each kernel, are more than {limit} MiB"
            ));
        }
        let (mut results, mut cursor) = (callee.results.clone(), callee.params.clone());
        for declaration in parameters(&mut results)? {
            function.result(declaration)?;
        }
        for declaration in parameters(&mut cursor)? {
            function.argument(declaration)?;
        }
        while let Token::Dot("noreturn") = cursor.token {
            cursor.advance()?;
        }
        while let Token::Dot("pragma") = cursor.token {
            cursor.skip_statement()?;
        }
        body(&mut cursor, &mut function)?;
        function.end_unit()?;
    }
    function.finish()
}

/// `(.param .u32 a, .param .b64 b)`, if it is there.
fn parameters<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<Declaration<'a>>, PtxError> {
    const MAX_PARAMETERS: usize = 8192;
    let mut list = Vec::new();
    if !cursor.accept('(')? || cursor.accept(')')? {
        return Ok(list);
    }
    loop {
        if list.len() == MAX_PARAMETERS {
            return cursor.error(format!("there are more than {MAX_PARAMETERS} parameters"));
        }
        list.push(parameter(cursor)?);
        if cursor.accept(')')? {
            return Ok(list);
        }
        cursor.expect(',')?;
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
