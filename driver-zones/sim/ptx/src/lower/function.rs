//! A kernel under construction.

use std::collections::HashMap;

use super::scope::{
    Declaration, LocalSymbol, ModuleScope, ModuleSymbol, Register, RegisterDeclaration, Scope,
    VariableSpace,
};
use crate::ir::{Code, Guard, Instr, Kernel, MAX_SLOTS, Op, Param, Preset32, Preset64, Slot, Type};
use crate::parse::{PtxError, shown};

/// Limits of the machine, which are those of the GPUs it stands for.
const MAX_THREADS: u32 = 1024;
const MAX_STATIC_SHARED: u64 = 48 << 10;
const MAX_LOCAL: u64 = 512 << 10;
const MAX_PARAMS: u64 = 32_764;
const MAX_INSTRUCTIONS: usize = 2_000_000;
/// Names, blocks and branch targets of one kernel, so that its text cannot take
/// many times its own size in memory.
const MAX_NAMES: usize = 500_000;

/// A place that holds a label until all labels are known.
enum Fixup {
    Branch { instruction: usize },
    Table { table: usize, entry: usize },
}

struct PendingLabel<'a> {
    name: &'a str,
    scope: usize,
    line: u32,
    fixup: Fixup,
}

pub(crate) struct FunctionBuilder<'m, 'a> {
    module: &'m ModuleScope<'a>,
    kernel: Kernel,
    pub(crate) code: Code,
    scopes: Vec<Scope<'a>>,
    scope: usize,
    pending: Vec<PendingLabel<'a>>,
    pending_tables: Vec<(usize, &'a str, usize, u32)>,
    shared_bytes: u64,
    local_bytes: u64,
    param_bytes: u64,
    /// Module-scope shared variables that this kernel uses.
    shared_used: HashMap<&'a str, u32>,
    presets32: HashMap<Preset32, Slot>,
    presets64: HashMap<Preset64, Slot>,
    temporaries: HashMap<(Type, u8), Slot>,
    names: usize,
    pub(crate) line: u32,
    pub(crate) guard: Guard,
}

impl<'m, 'a> FunctionBuilder<'m, 'a> {
    pub(crate) fn new(module: &'m ModuleScope<'a>, name: &str) -> Self {
        Self {
            module,
            kernel: Kernel {
                name: name.to_owned(),
                params: Vec::new(),
                static_shared: 0,
                registers: 0,
                local_bytes: 0,
                max_threads: MAX_THREADS,
                param_bytes: 0,
                code: Code::default(),
            },
            code: Code::default(),
            scopes: vec![Scope::default()],
            scope: 0,
            pending: Vec::new(),
            pending_tables: Vec::new(),
            shared_bytes: 0,
            local_bytes: 0,
            param_bytes: 0,
            shared_used: HashMap::new(),
            presets32: HashMap::new(),
            presets64: HashMap::new(),
            temporaries: HashMap::new(),
            names: 0,
            line: 1,
            guard: Guard::ALWAYS,
        }
    }

    pub(crate) fn error<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError::new(self.line, message))
    }

    /// Counts what a kernel declares.
    fn count_names(&mut self, count: usize, line: u32) -> Result<(), PtxError> {
        self.names = self.names.saturating_add(count);
        if self.names > MAX_NAMES {
            let message = format!("the kernel declares more than {MAX_NAMES} names");
            return Err(PtxError::new(line, message));
        }
        Ok(())
    }

    pub(crate) fn limit_threads(&mut self, threads: u64, line: u32) -> Result<(), PtxError> {
        match u32::try_from(threads) {
            Ok(threads @ 1..=MAX_THREADS) => {
                self.kernel.max_threads = self.kernel.max_threads.min(threads);
                Ok(())
            }
            _ => Err(PtxError::new(line, format!("a block cannot have {threads} threads"))),
        }
    }

    pub(crate) fn parameter(&mut self, declaration: Declaration<'a>) -> Result<(), PtxError> {
        let Some(size) = declaration.size(MAX_PARAMS)? else {
            return declaration.error("a kernel's parameter needs a length");
        };
        let offset = place(&mut self.param_bytes, size, declaration.align(), MAX_PARAMS)
            .ok_or(())
            .or_else(|()| declaration.error("the parameters take more than 32764 bytes"))?;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.kernel.params.push(Param { offset, size });
        self.symbol(&declaration, LocalSymbol::Param { offset })
    }

    pub(crate) fn variable(&mut self, declaration: Declaration<'a>) -> Result<(), PtxError> {
        if declaration.init.is_some() {
            return declaration.error("shared and local memory cannot be initialised");
        }
        let shared = declaration.space == VariableSpace::Shared;
        let limit = if shared { MAX_STATIC_SHARED } else { MAX_LOCAL };
        let Some(size) = declaration.size(limit)? else {
            return declaration.error("the array needs a length");
        };
        let used = if shared { &mut self.shared_bytes } else { &mut self.local_bytes };
        let Some(offset) = place(used, size, declaration.align(), limit) else {
            return declaration.error(&format!("the variables take more than {limit} bytes"));
        };
        let symbol =
            if shared { LocalSymbol::Shared { offset } } else { LocalSymbol::Local { offset } };
        self.symbol(&declaration, symbol)
    }

    fn symbol(
        &mut self,
        declaration: &Declaration<'a>,
        symbol: LocalSymbol,
    ) -> Result<(), PtxError> {
        self.count_names(1, declaration.line)?;
        if self.scopes[self.scope].symbols.insert(declaration.name, symbol).is_some() {
            return declaration.error("the name is declared twice");
        }
        Ok(())
    }

    pub(crate) fn register(&mut self, register: RegisterDeclaration<'a>) -> Result<(), PtxError> {
        self.count_names(1, register.line)?;
        let scope = &mut self.scopes[self.scope];
        let twice = match register.count {
            Some(count) => scope.ranges.insert(register.name, (register.ty, count)).is_some(),
            None => scope.single.insert(register.name, register.ty).is_some(),
        };
        if twice {
            let message = format!("register '{}' is declared twice", shown(register.name));
            return Err(PtxError::new(register.line, message));
        }
        Ok(())
    }

    pub(crate) fn open_scope(&mut self, line: u32) -> Result<(), PtxError> {
        self.count_names(1, line)?;
        let parent = Some(self.scope);
        self.scope = self.scopes.len();
        self.scopes.push(Scope { parent, ..Scope::default() });
        Ok(())
    }

    pub(crate) fn close_scope(&mut self) {
        self.scope = self.scopes[self.scope].parent.unwrap_or(0);
    }

    /// Walks from a scope outwards until `find` has an answer.
    fn lookup<T>(&self, from: usize, find: impl Fn(&Scope<'a>) -> Option<T>) -> Option<T> {
        let mut at = Some(from);
        while let Some(index) = at {
            let scope = &self.scopes[index];
            if let Some(found) = find(scope) {
                return Some(found);
            }
            at = scope.parent;
        }
        None
    }

    /// The register of that name, if one is declared.
    pub(crate) fn find_register(&mut self, name: &'a str) -> Result<Option<Register>, PtxError> {
        let mut at = Some(self.scope);
        while let Some(index) = at {
            if let Some(register) = self.scopes[index].used.get(name) {
                return Ok(Some(*register));
            }
            if let Some(ty) = self.scopes[index].declared(name) {
                let slot = self.new_slot(ty)?;
                let register = Register { ty, slot };
                self.scopes[index].used.insert(name, register);
                return Ok(Some(register));
            }
            at = self.scopes[index].parent;
        }
        Ok(None)
    }

    pub(crate) fn find_local(&self, name: &str) -> Option<LocalSymbol> {
        self.lookup(self.scope, |scope| scope.symbols.get(name).copied())
    }

    pub(crate) fn find_module(&self, name: &str) -> Option<ModuleSymbol> {
        self.module.symbol(name)
    }

    /// Gives a module-scope shared variable its place in this kernel's memory.
    pub(crate) fn place_shared(
        &mut self,
        name: &'a str,
        size: u64,
        align: u64,
    ) -> Result<u32, PtxError> {
        if let Some(offset) = self.shared_used.get(name) {
            return Ok(*offset);
        }
        let Some(offset) = place(&mut self.shared_bytes, size, align, MAX_STATIC_SHARED) else {
            return self
                .error(format!("the shared variables take more than {MAX_STATIC_SHARED} bytes"));
        };
        self.shared_used.insert(name, offset);
        Ok(offset)
    }

    fn new_slot(&mut self, ty: Type) -> Result<Slot, PtxError> {
        let file = match ty {
            Type::Pred => &mut self.code.predicates,
            Type::U64 | Type::S64 | Type::B64 | Type::F64 => &mut self.code.slots64,
            _ => &mut self.code.slots32,
        };
        match Slot::try_from(*file) {
            Ok(slot) if *file < MAX_SLOTS - 1 => {
                *file += 1;
                Ok(slot)
            }
            _ => self.error(format!("the kernel uses more than {MAX_SLOTS} registers")),
        }
    }

    pub(crate) fn preset32(&mut self, preset: Preset32) -> Result<Slot, PtxError> {
        if let Some(slot) = self.presets32.get(&preset) {
            return Ok(*slot);
        }
        let slot = self.new_slot(Type::B32)?;
        self.presets32.insert(preset, slot);
        self.code.presets32.push((slot, preset));
        Ok(slot)
    }

    pub(crate) fn preset64(&mut self, preset: Preset64) -> Result<Slot, PtxError> {
        if let Some(slot) = self.presets64.get(&preset) {
            return Ok(*slot);
        }
        let slot = self.new_slot(Type::B64)?;
        self.presets64.insert(preset, slot);
        self.code.presets64.push((slot, preset));
        Ok(slot)
    }

    /// A slot for values that live within one instruction of the text.
    pub(crate) fn temporary(&mut self, ty: Type, number: u8) -> Result<Slot, PtxError> {
        if let Some(slot) = self.temporaries.get(&(ty, number)) {
            return Ok(*slot);
        }
        let slot = self.new_slot(ty)?;
        self.temporaries.insert((ty, number), slot);
        Ok(slot)
    }

    pub(crate) fn append(&mut self, guard: Guard, op: Op) -> Result<(), PtxError> {
        if self.code.instructions.len() >= MAX_INSTRUCTIONS {
            return self.error(format!("the kernel has more than {MAX_INSTRUCTIONS} instructions"));
        }
        self.code.instructions.push(Instr { guard, op });
        Ok(())
    }

    /// Number of the next instruction.
    fn here(&self) -> u32 {
        u32::try_from(self.code.instructions.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn label(&mut self, name: &'a str, line: u32) -> Result<(), PtxError> {
        self.count_names(1, line)?;
        let here = self.here();
        if self.scopes[self.scope].labels.insert(name, here).is_some() {
            return Err(PtxError::new(line, format!("label '{}' is declared twice", shown(name))));
        }
        Ok(())
    }

    pub(crate) fn branch_table(
        &mut self,
        name: &'a str,
        targets: Vec<&'a str>,
        line: u32,
    ) -> Result<(), PtxError> {
        self.count_names(targets.len(), line)?;
        let table = self.code.tables.len();
        let number = u32::try_from(table).unwrap_or(u32::MAX);
        if self.scopes[self.scope].tables.insert(name, number).is_some() {
            return Err(PtxError::new(line, format!("label '{}' is declared twice", shown(name))));
        }
        self.code.tables.push(vec![0; targets.len()]);
        let scope = self.scope;
        self.pending.extend(targets.into_iter().enumerate().map(|(entry, name)| PendingLabel {
            name,
            scope,
            line,
            fixup: Fixup::Table { table, entry },
        }));
        Ok(())
    }

    /// Appends a branch to a label that may come later.
    pub(crate) fn branch_to(&mut self, name: &'a str) -> Result<(), PtxError> {
        let fixup = Fixup::Branch { instruction: self.code.instructions.len() };
        self.pending.push(PendingLabel { name, scope: self.scope, line: self.line, fixup });
        self.emit(Op::Bra { target: 0 })
    }

    /// Appends a branch through a table that may come later.
    pub(crate) fn branch_through(&mut self, index: Slot, name: &'a str) -> Result<(), PtxError> {
        self.pending_tables.push((self.code.instructions.len(), name, self.scope, self.line));
        self.emit(Op::BraIndexed { index, table: 0 })
    }

    fn resolve(&mut self) -> Result<(), PtxError> {
        for pending in std::mem::take(&mut self.pending) {
            let found = self.lookup(pending.scope, |scope| scope.labels.get(pending.name).copied());
            let Some(target) = found else {
                let message = format!("label '{}' is not declared", shown(pending.name));
                return Err(PtxError::new(pending.line, message));
            };
            match pending.fixup {
                Fixup::Branch { instruction } => {
                    self.code.instructions[instruction].op = Op::Bra { target };
                }
                Fixup::Table { table, entry } => self.code.tables[table][entry] = target,
            }
        }
        for (instruction, name, scope, line) in std::mem::take(&mut self.pending_tables) {
            let found = self.lookup(scope, |scope| scope.tables.get(name).copied());
            let Some(number) = found else {
                let message = format!("branch table '{}' is not declared", shown(name));
                return Err(PtxError::new(line, message));
            };
            if let Op::BraIndexed { table, .. } = &mut self.code.instructions[instruction].op {
                *table = number;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Kernel, PtxError> {
        // Running past the last instruction ends the thread, as `ret` does.
        self.append(Guard::ALWAYS, Op::Exit)?;
        self.resolve()?;
        let mut kernel = self.kernel;
        kernel.registers = estimate_registers(&self.code, kernel.max_threads);
        kernel.static_shared = u32::try_from(self.shared_bytes).unwrap_or(u32::MAX);
        kernel.local_bytes = u32::try_from(self.local_bytes.next_multiple_of(16)).unwrap_or(0);
        kernel.param_bytes = u32::try_from(self.param_bytes).unwrap_or(u32::MAX);
        kernel.code = self.code;
        Ok(kernel)
    }
}

/// Virtual registers overstate what a compiler would need, most of all in long
/// kernels; this is what a thread would take if half of them shared a place. As a
/// compiler does, it leaves room for the largest block in a register file of
/// 65536.
fn estimate_registers(code: &Code, max_threads: u32) -> u32 {
    const REGISTER_FILE: u32 = 65_536;
    let narrow = code.slots32 - code.presets32.len();
    let wide = code.slots64 - code.presets64.len();
    let words = u32::try_from(narrow + 2 * wide).unwrap_or(u32::MAX);
    (words / 2).clamp(8, (REGISTER_FILE / max_threads).clamp(8, 255))
}

/// Takes `size` bytes of `used`, within `limit`; returns their offset.
fn place(used: &mut u64, size: u64, align: u64, limit: u64) -> Option<u32> {
    let offset = used.checked_next_multiple_of(align)?;
    let end = offset.checked_add(size).filter(|end| *end <= limit)?;
    *used = end;
    u32::try_from(offset).ok()
}
