//! The calls of the mediated path. One table, [`calls`], says for each which functions of the
//! driver API it serves, what is sent and what is answered; both sides' encoding, the worker's
//! dispatch and the list of what is supported come from it.

mod calls;
mod page;
mod types;

#[cfg(test)]
mod tests;

pub use calls::*;
pub use page::support_page;
pub use types::*;

use std::os::fd::BorrowedFd;

use gpuzone_cuda_abi::CuResult;

use crate::codec::Field;
use crate::ring::Bulk;

/// Version of the rings, of this table and of the list of names that [`Unsupported`] counts by;
/// both sides must have the same.
pub const VERSION: u32 = 7;

/// How a function of the driver API is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Answered in the tenant's process.
    Local,
    /// Sent to the worker, which answers nothing; an error comes with a later call.
    Posted,
    /// Sent to the worker, which answers.
    Replied,
}

/// A function that is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supported {
    /// The name that the library exports.
    pub symbol: &'static str,
    /// How it is served.
    pub kind: Kind,
}

/// The function whose variant for a thread's own default stream this is, if it is one.
pub fn variant_of(symbol: &str) -> Option<&str> {
    symbol.strip_suffix("_ptsz").or_else(|| symbol.strip_suffix("_ptds"))
}

/// How `symbol` is served; `None` when it is not supported.
pub fn support(symbol: &str) -> Option<Kind> {
    let symbol = variant_of(symbol).unwrap_or(symbol);
    SUPPORT.iter().find(|supported| supported.symbol == symbol).map(|supported| supported.kind)
}

/// What is sent for a call.
pub trait Request: Field {
    /// Which call.
    const OPCODE: Opcode;
    /// What is answered; `()` for posted calls.
    type Reply: Field;
}

/// A call on its way to the [`Handler`].
pub struct Call<'a> {
    /// The context it is made in, 0 for none.
    pub context: ContextId,
    /// Its bulk bytes.
    pub bulk: Bulk,
    /// Where an answer in pieces goes.
    pub pieces: &'a mut dyn Pieces,
}

/// An answer's bulk bytes, sent piece by piece, and its file.
pub trait Pieces {
    /// Hands a file to the tenant, who takes it when the answer comes.
    ///
    /// # Errors
    /// When the tenant does not take files.
    fn hand_over(&mut self, _file: BorrowedFd<'_>) -> Result<(), CuResult> {
        Err(CuResult::NOT_SUPPORTED)
    }

    /// Whether a piece of this length can be sent without waiting for the tenant to read.
    fn has_room(&mut self, _length: usize) -> bool {
        true
    }

    /// Makes room for `length` bytes, at most [`crate::ring::MAX_BULK`], which [`Pieces::finish`] sends
    /// when they are there: where they go. `None` when there is no room for them yet beside those that
    /// were begun before, which have to be finished first.
    ///
    /// # Errors
    /// That the tenant is gone.
    fn begin(&mut self, length: usize) -> Result<Option<*mut u8>, CuResult>;

    /// Sends the piece that was begun first; there must be one.
    fn finish(&mut self);

    /// Forgets the pieces that were begun. Nobody must write to them any more.
    fn abandon(&mut self);

    /// Sends `length` bytes that `fill` writes to where it is told to, while none is begun.
    ///
    /// # Errors
    /// What `fill` answers, or that the tenant is gone.
    fn send(
        &mut self,
        length: usize,
        fill: &mut dyn FnMut(*mut u8) -> Result<(), CuResult>,
    ) -> Result<(), CuResult> {
        let target = self.begin(length)?.ok_or(CuResult::OUT_OF_MEMORY)?;
        let filled = fill(target);
        match filled {
            Ok(()) => self.finish(),
            Err(_) => self.abandon(),
        }
        filled
    }
}
