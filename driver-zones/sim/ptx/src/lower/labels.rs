//! Labels, branches to them, and tables of them.

use super::FunctionBuilder;
use crate::ir::{Op, Slot};
use crate::parse::{PtxError, shown};

/// A place that holds a label until all labels are known.
pub(super) enum Fixup {
    Branch { instruction: usize },
    Table { table: usize, entry: usize },
}

pub(super) struct PendingLabel<'a> {
    name: &'a str,
    scope: usize,
    line: u32,
    fixup: Fixup,
}

/// What waits for the end of a body, when all labels are known.
#[derive(Default)]
pub(super) struct Pending<'a> {
    labels: Vec<PendingLabel<'a>>,
    /// Branches through a table: instruction, name, scope, line.
    tables: Vec<(usize, &'a str, usize, u32)>,
}

impl<'a> FunctionBuilder<'_, 'a> {
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
        self.pending.labels.extend(targets.into_iter().enumerate().map(|(entry, name)| {
            PendingLabel { name, scope, line, fixup: Fixup::Table { table, entry } }
        }));
        Ok(())
    }

    /// Appends a branch to a label that may come later.
    pub(crate) fn branch_to(&mut self, name: &'a str) -> Result<(), PtxError> {
        let fixup = Fixup::Branch { instruction: self.code.instructions.len() };
        self.pending.labels.push(PendingLabel { name, scope: self.scope, line: self.line, fixup });
        self.emit(Op::Bra { target: 0 })
    }

    /// Appends a branch through a table that may come later.
    pub(crate) fn branch_through(&mut self, index: Slot, name: &'a str) -> Result<(), PtxError> {
        self.pending.tables.push((self.code.instructions.len(), name, self.scope, self.line));
        self.emit(Op::BraIndexed { index, table: 0 })
    }

    /// Fills in the labels of a body that has ended.
    pub(super) fn resolve(&mut self) -> Result<(), PtxError> {
        for pending in std::mem::take(&mut self.pending.labels) {
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
        for (instruction, name, scope, line) in std::mem::take(&mut self.pending.tables) {
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
}
