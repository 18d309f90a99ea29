//! From statements to decoded instructions. Everything that the machine would
//! not execute exactly is refused here, with its line.

mod arithmetic;
mod atomics;
mod bits;
mod calls;
mod compare;
mod control;
mod convert;
mod float;
mod function;
mod half;
mod labels;
mod memory;
mod modifiers;
mod moves;
mod operands;
mod scope;
mod unit;
mod variables;
mod warp;

pub(crate) use function::FunctionBuilder;
pub(crate) use operands::encode;
pub(crate) use scope::{
    Declaration, FunctionSource, ModuleScope, RegisterDeclaration, VariableSpace,
};

use crate::ir::{Guard, Op};
use crate::parse::{PtxError, Statement};
use modifiers::Modifiers;

impl<'a> FunctionBuilder<'_, 'a> {
    /// Decodes one instruction.
    pub(crate) fn statement(&mut self, statement: &Statement<'a>) -> Result<(), PtxError> {
        self.line = statement.line;
        self.guard = match statement.guard {
            None => Guard::ALWAYS,
            Some((name, negated)) => Guard::new(self.predicate_register(name)?, negated),
        };
        let mut modifiers = Modifiers::of(statement);
        let known = self.dispatch(statement, &mut modifiers)?;
        if !known {
            let opcode = statement.opcode();
            return self.error(format!("unknown instruction '{opcode}'"));
        }
        modifiers.finish()
    }

    /// Returns whether the instruction is known.
    fn dispatch(
        &mut self,
        statement: &Statement<'a>,
        modifiers: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        if statement.second.is_some()
            && !matches!(statement.mnemonic, "setp" | "shfl" | "match" | "elect")
        {
            return self.error(format!("'{}' has one result only", statement.opcode()));
        }
        Ok(self.lower_arithmetic(statement, modifiers)?
            || self.lower_half(statement, modifiers)?
            || self.lower_float(statement, modifiers)?
            || self.lower_compare(statement, modifiers)?
            || self.lower_move(statement, modifiers)?
            || self.lower_convert(statement, modifiers)?
            || self.lower_memory(statement, modifiers)?
            || self.lower_atomics(statement, modifiers)?
            || self.lower_control(statement, modifiers)?
            || self.lower_warp(statement, modifiers)?)
    }

    /// Appends an instruction under the statement's guard.
    pub(crate) fn emit(&mut self, op: Op) -> Result<(), PtxError> {
        self.append(self.guard, op)
    }
}
