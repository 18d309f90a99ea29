//! A kernel's code consists of units: its own body, and the bodies of the
//! functions that it may call, each there once. Nothing is ever active twice in
//! one thread, so that each function has registers and memory of its own.
//!
//! Callees are put before their callers: of diverged lanes those run first whose
//! instruction is lowest, so lanes that left for a function come back before the
//! others go on.

use std::collections::{HashMap, HashSet};

use super::FunctionBuilder;
use super::scope::{FunctionSource, Scope};
use crate::ir::{Guard, Instr, Op, Slot};
use crate::parse::{PtxError, shown};

/// A body that has been lowered; its branches count from its own beginning.
struct Unit {
    /// The function's number; the kernel itself has none.
    function: Option<u32>,
    instructions: Vec<Instr>,
    /// Its branch tables, as a range of `Code::tables`.
    tables: std::ops::Range<usize>,
    /// Functions that it calls, and in which line.
    calls: Vec<(u32, u32)>,
}

/// The unit under construction, those before it, and what is still to come.
#[derive(Default)]
pub(super) struct Units {
    done: Vec<Unit>,
    instructions: usize,
    current: Option<u32>,
    first_table: usize,
    calls: Vec<(u32, u32)>,
    wanted: Vec<(u32, u32)>,
    known: HashSet<u32>,
    /// Where the current function's return address is held, in a function.
    pub(super) return_to: Option<Slot>,
    pub(super) frame: super::calls::FunctionFrame,
}

impl Units {
    /// Instructions of the units that are done.
    pub(super) fn instructions(&self) -> usize {
        self.instructions
    }
}

impl<'m, 'a> FunctionBuilder<'m, 'a> {
    /// Notes that the current unit calls a function.
    pub(super) fn note_call(&mut self, function: u32) {
        self.units.calls.push((function, self.line));
        self.want_function(function);
    }

    /// Notes that the kernel's code must hold a function, whoever calls it.
    pub(super) fn want_function(&mut self, function: u32) {
        if self.units.known.insert(function) {
            self.units.wanted.push((function, self.line));
        }
    }

    /// Ends the body that was lowered last.
    pub(crate) fn end_unit(&mut self) -> Result<(), PtxError> {
        // Running past the last instruction ends the body, as `ret` does.
        self.guard = Guard::ALWAYS;
        self.emit_return()?;
        self.resolve()?;
        let instructions = std::mem::take(&mut self.code.instructions);
        self.units.instructions += instructions.len();
        let tables = self.units.first_table..self.code.tables.len();
        self.units.first_table = tables.end;
        let calls = std::mem::take(&mut self.units.calls);
        let function = self.units.current;
        self.units.done.push(Unit { function, instructions, tables, calls });
        Ok(())
    }

    /// Begins the body of a function that is needed and not there yet, if any.
    pub(crate) fn begin_next_function(
        &mut self,
    ) -> Result<Option<&'m FunctionSource<'a>>, PtxError> {
        let Some((function, line)) = self.units.wanted.pop() else { return Ok(None) };
        self.line = line;
        let module = self.module;
        let Some(source) = module.function_source(function) else {
            let name = shown(module.function_name(function));
            return self.error(format!("the function '{name}' has no body in this text"));
        };
        self.local_bytes = self.local_peak.next_multiple_of(16);
        self.scopes.clear();
        self.scopes.push(Scope { local_before: self.local_bytes, ..Scope::default() });
        self.scope = 0;
        self.units.current = Some(function);
        self.begin_frame()?;
        Ok(Some(source))
    }

    /// The order of the units: callees first, the kernel last. Refuses recursion.
    fn order(&self) -> Result<Vec<usize>, PtxError> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let units = &self.units.done;
        let place: HashMap<u32, usize> = units
            .iter()
            .enumerate()
            .filter_map(|(index, unit)| Some((unit.function?, index)))
            .collect();
        let mut states = vec![State::New; units.len()];
        let mut order = Vec::with_capacity(units.len());
        for root in (0..units.len()).rev() {
            // What is to be looked at: a unit, and which of its calls comes next.
            let mut stack = vec![(root, 0)];
            while let Some((unit, next)) = stack.pop() {
                if next == 0 {
                    if states[unit] != State::New {
                        continue;
                    }
                    states[unit] = State::Open;
                }
                let Some((function, line)) = units[unit].calls.get(next) else {
                    states[unit] = State::Done;
                    order.push(unit);
                    continue;
                };
                stack.push((unit, next + 1));
                let callee = place[function];
                if states[callee] == State::Open {
                    let name = shown(self.module.function_name(*function));
                    let message = format!("recursion is not supported: '{name}' calls itself");
                    return Err(PtxError::new(*line, message));
                }
                stack.push((callee, 0));
            }
        }
        Ok(order)
    }

    /// Puts the units together and fills in where calls and branches lead.
    pub(super) fn link(&mut self) -> Result<(), PtxError> {
        let order = self.order()?;
        let mut starts = HashMap::new();
        let mut at = 0_u32;
        for index in &order {
            let unit = &self.units.done[*index];
            match unit.function {
                Some(function) => {
                    starts.insert(function, at);
                }
                None => self.code.entry = at,
            }
            // Both are below the limit of instructions.
            at += u32::try_from(unit.instructions.len()).unwrap_or(u32::MAX);
        }
        for index in order {
            let unit = &mut self.units.done[index];
            let start = u32::try_from(self.code.instructions.len()).unwrap_or(u32::MAX);
            for instruction in &mut unit.instructions {
                match &mut instruction.op {
                    Op::Bra { target } => *target += start,
                    Op::Call { target, .. } => *target = starts[target],
                    _ => {}
                }
            }
            for table in &mut self.code.tables[unit.tables.clone()] {
                table.iter_mut().for_each(|target| *target += start);
            }
            self.code.instructions.append(&mut unit.instructions);
        }
        self.code.functions = starts;
        Ok(())
    }
}
