//! A kernel under construction.

use std::collections::HashMap;

use super::labels::Pending;
use super::scope::{LocalSymbol, ModuleScope, ModuleSymbol, Register, RegisterDeclaration, Scope};
use super::unit::Units;
use crate::ir::{Code, Guard, Instr, Kernel, MAX_SLOTS, Op, Preset32, Preset64, Slot, Type};
use crate::parse::{PtxError, shown};

/// Limits of the machine, which are those of the GPUs it stands for.
const MAX_THREADS: u32 = 1024;
const MAX_INSTRUCTIONS: usize = 2_000_000;
/// Names, blocks and branch targets of one kernel, so that its text cannot take
/// many times its own size in memory.
const MAX_NAMES: usize = 500_000;

pub(crate) struct FunctionBuilder<'m, 'a> {
    pub(super) module: &'m ModuleScope<'a>,
    pub(super) kernel: Kernel,
    pub(crate) code: Code,
    pub(super) scopes: Vec<Scope<'a>>,
    pub(super) scope: usize,
    pub(super) pending: Pending<'a>,
    pub(super) units: Units,
    pub(super) shared_bytes: u64,
    /// Bytes of local memory that are taken now, and the most that ever were.
    pub(super) local_bytes: u64,
    pub(super) local_peak: u64,
    pub(super) param_bytes: u64,
    /// Module-scope shared variables that this kernel uses.
    pub(super) shared_used: HashMap<&'a str, u32>,
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
            pending: Pending::default(),
            units: Units::default(),
            shared_bytes: 0,
            local_bytes: 0,
            local_peak: 0,
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
    pub(super) fn count_names(&mut self, count: usize, line: u32) -> Result<(), PtxError> {
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
        self.scopes.push(Scope { parent, local_before: self.local_bytes, ..Scope::default() });
        Ok(())
    }

    /// The parameters of calls in a block share their places with the next block's.
    pub(crate) fn close_scope(&mut self) {
        let Scope { parent, local_before, keeps_local, .. } = self.scopes[self.scope];
        let Some(parent) = parent else { return };
        self.scopes[parent].keeps_local |= keeps_local;
        if !keeps_local {
            self.local_bytes = local_before;
        }
        self.scope = parent;
    }

    /// Walks from a scope outwards until `find` has an answer.
    pub(super) fn lookup<T>(
        &self,
        from: usize,
        find: impl Fn(&Scope<'a>) -> Option<T>,
    ) -> Option<T> {
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

    pub(super) fn new_slot(&mut self, ty: Type) -> Result<Slot, PtxError> {
        let slots = if ty == Type::B128 { 2 } else { 1 };
        let file = match ty {
            Type::Pred => &mut self.code.predicates,
            Type::U64 | Type::S64 | Type::B64 | Type::F64 | Type::B128 => &mut self.code.slots64,
            _ => &mut self.code.slots32,
        };
        match Slot::try_from(*file) {
            Ok(slot) if *file < MAX_SLOTS - slots => {
                *file += slots;
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
        if self.units.instructions() + self.code.instructions.len() >= MAX_INSTRUCTIONS {
            return self.error(format!("the kernel has more than {MAX_INSTRUCTIONS} instructions"));
        }
        self.code.instructions.push(Instr { guard, op });
        Ok(())
    }

    /// Number of the next instruction.
    pub(super) fn here(&self) -> u32 {
        u32::try_from(self.code.instructions.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn finish(mut self) -> Result<Kernel, PtxError> {
        self.place_calls()?;
        self.link()?;
        let mut kernel = self.kernel;
        kernel.registers = estimate_registers(&self.code, kernel.max_threads);
        kernel.static_shared = u32::try_from(self.shared_bytes).unwrap_or(u32::MAX);
        kernel.local_bytes = u32::try_from(self.local_peak.next_multiple_of(16)).unwrap_or(0);
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
