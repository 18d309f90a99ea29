//! The internal form of a module: what the parser makes and the machine runs.

mod instruction;
mod op;
mod operation;
mod tables;
mod types;

pub(crate) use instruction::*;
pub(crate) use op::*;
pub(crate) use operation::*;
pub(crate) use tables::*;
pub(crate) use types::*;

use crate::exec::windows;
use crate::parse::{PtxError, parse_module};

/// A parsed and verified module.
#[derive(Debug)]
pub struct Module {
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) globals: Vec<GlobalVariable>,
    pub(crate) target: (u32, u32),
}

impl Module {
    /// Parses and verifies PTX text.
    ///
    /// # Errors
    ///
    /// The first thing in the text that is malformed, or that this machine does
    /// not know, with its line.
    pub fn parse(source: &str) -> Result<Self, PtxError> {
        parse_module(source)
    }

    /// The kernel (`.entry`) of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// All kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The bytes with which a variable (by its place in [`Self::globals`]) begins, once
    /// the address of each variable is known; what is beyond them is zero.
    #[must_use]
    pub fn initial_value(&self, variable: usize, addresses: &[u64]) -> Option<Vec<u8>> {
        let global = self.globals.get(variable)?;
        let mut bytes = global.init.clone()?;
        for value in &global.addresses {
            let address = match value.target {
                AddressTarget::Function(number) => windows::function_address(number),
                AddressTarget::Global(index) => addresses.get(index as usize).copied()?,
            };
            let address = address.wrapping_add_signed(value.addend).to_le_bytes();
            let taken = address.get(usize::from(value.first)..)?.get(..usize::from(value.bytes))?;
            bytes.get_mut(value.offset..)?.get_mut(..taken.len())?.copy_from_slice(taken);
        }
        Some(bytes)
    }

    /// Module-scope `.global` and `.const` variables, in the order of the text.
    #[must_use]
    pub fn globals(&self) -> &[GlobalVariable] {
        &self.globals
    }

    /// The compute capability that the text was made for (`.target sm_75` is 7, 5).
    #[must_use]
    pub fn target_compute_capability(&self) -> (u32, u32) {
        self.target
    }
}

/// A module-scope variable in global or constant memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalVariable {
    /// Its name, as `cuModuleGetGlobal` looks it up.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
    /// The first bytes of its initial value, in which addresses are zero.
    pub(crate) init: Option<Vec<u8>>,
    /// Addresses among its initial value.
    pub(crate) addresses: Vec<InitialAddress>,
    /// Whether it was declared `.const`.
    pub constant: bool,
}

/// An address of a variable or function that an initial value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitialAddress {
    pub(crate) offset: usize,
    pub(crate) target: AddressTarget,
    pub(crate) addend: i64,
    /// How many of the address's bytes, and from which one on.
    pub(crate) bytes: u8,
    pub(crate) first: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressTarget {
    Global(u32),
    Function(u32),
}

/// A parameter's place in the kernel's parameter buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Offset in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// A kernel, ready to execute.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) static_shared: u32,
    pub(crate) registers: u32,
    pub(crate) local_bytes: u32,
    pub(crate) max_threads: u32,
    /// Size of the parameter buffer in bytes.
    pub(crate) param_bytes: u32,
    pub(crate) code: Code,
}

impl Kernel {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of shared memory that its variables take, without dynamic ones.
    #[must_use]
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared
    }

    /// An estimate of the registers per thread that a GPU's compiler would use.
    #[must_use]
    pub fn registers(&self) -> u32 {
        self.registers
    }

    /// Bytes of local memory per thread.
    #[must_use]
    pub fn local_bytes(&self) -> u32 {
        self.local_bytes
    }

    /// The most threads that a block may have (1024, or less by `.maxntid`).
    #[must_use]
    pub fn max_threads_per_block(&self) -> u32 {
        self.max_threads
    }
}
