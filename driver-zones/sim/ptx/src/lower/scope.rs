//! What names mean: module-scope symbols, and the nested scopes of a body.

use std::collections::HashMap;

use crate::ir::{AddressTarget, GlobalVariable, InitialAddress, Slot, Type};
use crate::parse::{Cursor, Initializer, PtxError, shown};

/// The state space of a declared variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VariableSpace {
    Global,
    Constant,
    Shared,
    Local,
    Param,
}

/// A variable as it was declared.
#[derive(Debug)]
pub(crate) struct Declaration<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    pub(crate) space: VariableSpace,
    pub(crate) ty: Type,
    pub(crate) vector: u64,
    pub(crate) align: Option<u64>,
    /// Elements of an array; none when it has no length of its own.
    pub(crate) elements: Option<u64>,
    pub(crate) init: Option<Initializer<'a>>,
}

impl Declaration<'_> {
    pub(crate) fn error<T>(&self, message: &str) -> Result<T, PtxError> {
        Err(PtxError::new(self.line, format!("'{}': {message}", shown(self.name))))
    }

    pub(crate) fn align(&self) -> u64 {
        let natural = u64::from(self.ty.bytes()) * self.vector;
        self.align.unwrap_or(1).max(natural)
    }

    /// Size in bytes, of at most `limit`; none for an array without a length.
    pub(crate) fn size(&self, limit: u64) -> Result<Option<u64>, PtxError> {
        const MAX_ALIGN: u64 = 4096;
        if self.align() > MAX_ALIGN {
            return self.error("the alignment is larger than 4096");
        }
        let Some(elements) = self.elements else { return Ok(None) };
        let element = u64::from(self.ty.bytes()) * self.vector;
        match elements.checked_mul(element) {
            Some(size) if size <= limit => Ok(Some(size)),
            _ => self.error(&format!("the variable is larger than {limit} bytes")),
        }
    }
}

/// A `.reg` declaration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegisterDeclaration<'a> {
    pub(crate) name: &'a str,
    /// `%r<count>` declares `%r0` to `%r(count-1)`.
    pub(crate) count: Option<u32>,
    pub(crate) ty: Type,
    pub(crate) line: u32,
}

/// What a module-scope name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ModuleSymbol {
    Global { index: u32 },
    Shared { size: u64, align: u64 },
    DynamicShared,
    Kernel,
    Function { number: u32 },
}

/// A device function's text.
pub(crate) struct FunctionSource<'a> {
    /// Before its results, if there are any.
    pub(crate) results: Cursor<'a>,
    /// Before its parameters, or its body.
    pub(crate) params: Cursor<'a>,
    pub(crate) bytes: usize,
}

/// A device function, which may be declared only.
struct Function<'a> {
    name: &'a str,
    source: Option<FunctionSource<'a>>,
}

/// Module-scope names.
#[derive(Default)]
pub(crate) struct ModuleScope<'a> {
    symbols: HashMap<&'a str, ModuleSymbol>,
    globals: Vec<GlobalVariable>,
    functions: Vec<Function<'a>>,
    /// Values that are addresses, by the variable that holds them.
    initial: Vec<(usize, Initializer<'a>)>,
    /// Functions whose addresses variables hold, in no order.
    pointed_at: Vec<u32>,
}

impl<'a> ModuleScope<'a> {
    pub(crate) fn symbol(&self, name: &str) -> Option<ModuleSymbol> {
        self.symbols.get(name).copied()
    }

    pub(crate) fn into_globals(self) -> Vec<GlobalVariable> {
        self.globals
    }

    fn insert(&mut self, name: &'a str, symbol: ModuleSymbol, line: u32) -> Result<(), PtxError> {
        if self.symbols.insert(name, symbol).is_some() {
            let message = format!("'{}' is declared twice", shown(name));
            return Err(PtxError::new(line, message));
        }
        Ok(())
    }

    pub(crate) fn declare_kernel(&mut self, name: &'a str, line: u32) -> Result<(), PtxError> {
        self.insert(name, ModuleSymbol::Kernel, line)
    }

    /// Returns the function's number. One may be declared many times.
    pub(crate) fn declare_function(&mut self, name: &'a str, line: u32) -> Result<u32, PtxError> {
        const MAX_FUNCTIONS: usize = 1 << 20;
        if let Some(ModuleSymbol::Function { number }) = self.symbol(name) {
            return Ok(number);
        }
        let number = u32::try_from(self.functions.len()).unwrap_or(u32::MAX);
        if self.functions.len() == MAX_FUNCTIONS {
            return Err(PtxError::new(line, "the text has too many functions"));
        }
        self.functions.push(Function { name, source: None });
        self.insert(name, ModuleSymbol::Function { number }, line)?;
        Ok(number)
    }

    pub(crate) fn define_function(
        &mut self,
        number: u32,
        source: FunctionSource<'a>,
        line: u32,
    ) -> Result<(), PtxError> {
        let function = &mut self.functions[number as usize];
        if function.source.replace(source).is_some() {
            let message = format!("'{}' is declared twice", shown(function.name));
            return Err(PtxError::new(line, message));
        }
        Ok(())
    }

    pub(crate) fn function_name(&self, number: u32) -> &'a str {
        self.functions[number as usize].name
    }

    pub(crate) fn function_source(&self, number: u32) -> Option<&FunctionSource<'a>> {
        self.functions[number as usize].source.as_ref()
    }

    /// Functions whose addresses initial values hold.
    pub(crate) fn pointed_at(&self) -> &[u32] {
        &self.pointed_at
    }

    /// Looks up the names among initial values, once all are declared.
    pub(crate) fn resolve_addresses(&mut self) -> Result<(), PtxError> {
        for (index, value) in std::mem::take(&mut self.initial) {
            for address in value.addresses {
                let target = match self.symbol(address.name) {
                    Some(ModuleSymbol::Global { index }) => AddressTarget::Global(index),
                    Some(ModuleSymbol::Function { number }) => {
                        self.pointed_at.push(number);
                        AddressTarget::Function(number)
                    }
                    _ => {
                        let name = shown(address.name);
                        let message = format!("'{name}' is no variable or function in memory");
                        return Err(PtxError::new(address.line, message));
                    }
                };
                let (offset, addend) = (address.offset, address.addend);
                let (bytes, first) = (address.bytes, address.first);
                let value = InitialAddress { offset, target, addend, bytes, first };
                self.globals[index].addresses.push(value);
            }
        }
        self.pointed_at.sort_unstable();
        self.pointed_at.dedup();
        Ok(())
    }

    pub(crate) fn declare(
        &mut self,
        declaration: Declaration<'a>,
        external: bool,
    ) -> Result<(), PtxError> {
        const MAX_GLOBAL: u64 = 1 << 40;
        const MAX_VARIABLES: usize = 65_536;
        if self.globals.len() == MAX_VARIABLES {
            return declaration.error("the text has too many variables");
        }
        let size = declaration.size(MAX_GLOBAL)?;
        let align = declaration.align();
        if declaration.space == VariableSpace::Shared {
            let symbol = match size {
                _ if declaration.init.is_some() => {
                    return declaration.error("shared memory cannot be initialised");
                }
                Some(size) if size > 0 => ModuleSymbol::Shared { size, align },
                _ if external => ModuleSymbol::DynamicShared,
                _ => return declaration.error("a shared array needs a length"),
            };
            return self.insert(declaration.name, symbol, declaration.line);
        }
        if external {
            return declaration.error("variables of other modules are not supported");
        }
        let given = declaration.init.as_ref().map(|value| value.bytes.len() as u64);
        let Some(size) = size.or(given) else {
            return declaration.error("the array needs a length or a value");
        };
        if given.is_some_and(|given| given > size) {
            return declaration.error("more values than elements");
        }
        let index = u32::try_from(self.globals.len()).unwrap_or(u32::MAX);
        self.insert(declaration.name, ModuleSymbol::Global { index }, declaration.line)?;
        let init = declaration.init.map(|mut value| {
            let bytes = std::mem::take(&mut value.bytes);
            if !value.addresses.is_empty() {
                self.initial.push((self.globals.len(), value));
            }
            bytes
        });
        self.globals.push(GlobalVariable {
            name: declaration.name.to_owned(),
            size,
            align,
            init,
            addresses: Vec::new(),
            constant: declaration.space == VariableSpace::Constant,
        });
        Ok(())
    }
}

/// A register and where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) ty: Type,
    pub(crate) slot: Slot,
}

/// What a name that is declared in a body stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LocalSymbol {
    Param {
        offset: u32,
    },
    Shared {
        offset: u32,
    },
    Local {
        offset: u32,
    },
    /// A parameter of a device function or of a call, which lies in local memory.
    Frame(FramePlace),
}

/// Where a parameter of a device function or of a call lies in local memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FramePlace {
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) align: u32,
}

/// One `{ }` of a body.
#[derive(Default)]
pub(crate) struct Scope<'a> {
    pub(crate) parent: Option<usize>,
    /// Bytes of local memory that were taken when it began.
    pub(crate) local_before: u64,
    /// Whether what it takes of local memory stays taken after its end.
    pub(crate) keeps_local: bool,
    pub(crate) single: HashMap<&'a str, Type>,
    pub(crate) ranges: HashMap<&'a str, (Type, u32)>,
    /// Registers that were used, which alone take a slot.
    pub(crate) used: HashMap<&'a str, Register>,
    pub(crate) symbols: HashMap<&'a str, LocalSymbol>,
    pub(crate) labels: HashMap<&'a str, u32>,
    pub(crate) tables: HashMap<&'a str, u32>,
}

impl Scope<'_> {
    /// The declared type of a register, if this scope declares it.
    pub(crate) fn declared(&self, name: &str) -> Option<Type> {
        if let Some(ty) = self.single.get(name) {
            return Some(*ty);
        }
        const LONGEST_NUMBER: usize = 10;
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        (1..=digits.min(LONGEST_NUMBER)).find_map(|length| {
            let (prefix, number) = name.split_at(name.len() - length);
            let (ty, count) = self.ranges.get(prefix)?;
            let canonical = number == "0" || !number.starts_with('0');
            (canonical && number.parse::<u32>().ok()? < *count).then_some(*ty)
        })
    }
}
