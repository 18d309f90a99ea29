//! An instruction's modifiers, taken one by one; what is left over is unknown.

use crate::ir::{FloatMode, Round, Type};
use crate::parse::{PtxError, Statement, shown};

pub(crate) struct Modifiers<'a> {
    left: Vec<&'a str>,
    opcode: String,
    line: u32,
}

impl<'a> Modifiers<'a> {
    pub(crate) fn of(statement: &Statement<'a>) -> Self {
        Self { left: statement.modifiers.clone(), opcode: statement.opcode(), line: statement.line }
    }

    pub(crate) fn error<T>(&self, message: impl std::fmt::Display) -> Result<T, PtxError> {
        Err(PtxError::new(self.line, format!("unknown instruction '{}': {message}", self.opcode)))
    }

    /// Takes a modifier if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|modifier| *modifier == name);
        if let Some(index) = found {
            self.left.remove(index);
        }
        found.is_some()
    }

    /// Takes the first modifier for which `find` has an answer.
    pub(crate) fn find<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (index, value) = self
            .left
            .iter()
            .enumerate()
            .find_map(|(index, modifier)| Some((index, find(modifier)?)))?;
        self.left.remove(index);
        Some(value)
    }

    /// Takes all modifiers that `accept` knows to change nothing here.
    pub(crate) fn ignore(&mut self, accept: impl Fn(&str) -> bool) {
        self.left.retain(|modifier| !accept(modifier));
    }

    /// Takes the first type.
    pub(crate) fn ty(&mut self) -> Result<Type, PtxError> {
        match self.find(Type::named) {
            Some(ty) => Ok(ty),
            None => self.error("a known type is missing"),
        }
    }

    /// Looks at the last type, which is the one that says how an instruction works.
    pub(crate) fn last_type(&self) -> Option<Type> {
        self.left.iter().rev().find_map(|modifier| Type::named(modifier))
    }

    pub(crate) fn round(&mut self) -> Option<Round> {
        self.find(|modifier| match modifier {
            "rn" => Some(Round::Nearest),
            "rz" => Some(Round::Zero),
            "rm" => Some(Round::Down),
            "rp" => Some(Round::Up),
            _ => None,
        })
    }

    /// Rounding, `.ftz` and `.sat`, those that are there.
    pub(crate) fn float_mode(&mut self) -> FloatMode {
        let round = self.round().unwrap_or(Round::Nearest);
        FloatMode { round, ftz: self.take("ftz"), sat: self.take("sat") }
    }

    pub(crate) fn finish(self) -> Result<(), PtxError> {
        match self.left.first() {
            None => Ok(()),
            Some(modifier) => {
                self.error(format!("its modifier '.{}' is not supported", shown(modifier)))
            }
        }
    }
}
