//! Parameters and variables of a body, and their places in memory.

use super::FunctionBuilder;
use super::scope::{Declaration, FramePlace, LocalSymbol, VariableSpace};
use crate::ir::Param;
use crate::parse::PtxError;

/// Limits of the machine, which are those of the GPUs it stands for.
const MAX_STATIC_SHARED: u64 = 48 << 10;
const MAX_LOCAL: u64 = 512 << 10;
const MAX_PARAMS: u64 = 32_764;

impl<'a> FunctionBuilder<'_, 'a> {
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

    /// A result of a device function.
    pub(crate) fn result(&mut self, declaration: Declaration<'a>) -> Result<(), PtxError> {
        let place = self.frame_variable(&declaration)?;
        self.enter_with_result(place)
    }

    /// A parameter of a device function.
    pub(crate) fn argument(&mut self, declaration: Declaration<'a>) -> Result<(), PtxError> {
        let place = self.frame_variable(&declaration)?;
        self.enter_with_argument(place)
    }

    /// A variable in a body.
    pub(crate) fn variable(&mut self, declaration: Declaration<'a>) -> Result<(), PtxError> {
        if declaration.init.is_some() {
            return declaration.error("variables of a body cannot be initialised");
        }
        let shared = match declaration.space {
            VariableSpace::Param => return self.frame_variable(&declaration).map(|_| ()),
            VariableSpace::Shared => true,
            _ => false,
        };
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
        self.scopes[self.scope].keeps_local |= !shared;
        self.local_peak = self.local_peak.max(self.local_bytes);
        self.symbol(&declaration, symbol)
    }

    /// A parameter that lies in local memory.
    fn frame_variable(&mut self, declaration: &Declaration<'a>) -> Result<FramePlace, PtxError> {
        let Some(size) = declaration.size(MAX_LOCAL)? else {
            return declaration.error("a parameter needs a length");
        };
        let align = declaration.align();
        let Some(offset) = place(&mut self.local_bytes, size, align, MAX_LOCAL) else {
            return declaration.error(&format!("the variables take more than {MAX_LOCAL} bytes"));
        };
        self.local_peak = self.local_peak.max(self.local_bytes);
        // Both are at most `MAX_LOCAL`.
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let place = FramePlace { offset, size: narrow(size), align: narrow(align) };
        self.symbol(declaration, LocalSymbol::Frame(place))?;
        Ok(place)
    }

    /// Takes local memory that belongs to no variable.
    pub(super) fn reserve_local(&mut self, size: u32) -> Result<u32, PtxError> {
        const ALIGN: u64 = 16;
        match place(&mut self.local_peak, u64::from(size), ALIGN, MAX_LOCAL) {
            Some(offset) => Ok(offset),
            None => self.error(format!("the variables take more than {MAX_LOCAL} bytes")),
        }
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
}

/// Takes `size` bytes of `used`, within `limit`; returns their offset.
fn place(used: &mut u64, size: u64, align: u64, limit: u64) -> Option<u32> {
    let offset = used.checked_next_multiple_of(align)?;
    let end = offset.checked_add(size).filter(|end| *end <= limit)?;
    *used = end;
    u32::try_from(offset).ok()
}
