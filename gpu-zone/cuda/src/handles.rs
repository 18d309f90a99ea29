//! Handles as the program holds them: numbers that look like no address, so that a program
//! which follows one stops there and then.

use std::ffi::c_void;

const MARK: usize = 0x6770 << 48;
const KIND_SHIFT: usize = 40;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Context = 1,
    Module = 2,
    Function = 3,
    Stream = 4,
    Event = 5,
    Library = 6,
    Kernel = 7,
    Linker = 8,
    Pool = 9,
    Graph = 10,
    Node = 11,
    Executable = 12,
}

/// The handle of the object with this number.
pub(crate) fn handle(kind: Kind, id: u32) -> *mut c_void {
    std::ptr::without_provenance_mut(MARK | ((kind as usize) << KIND_SHIFT) | id as usize)
}

/// The number behind a handle of this kind.
pub(crate) fn number(kind: Kind, handle: *mut c_void) -> Option<u32> {
    let id = handle.addr().checked_sub(MARK | ((kind as usize) << KIND_SHIFT))?;
    u32::try_from(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_of_one_kind() {
        let stream = handle(Kind::Stream, u32::MAX);
        assert_eq!(number(Kind::Stream, stream), Some(u32::MAX));
        for other in [Kind::Context, Kind::Module, Kind::Function, Kind::Event] {
            assert_eq!(number(other, stream), None);
        }
        for address in [0, 1, 2, 0x7fff_0000_1000, usize::MAX] {
            assert_eq!(number(Kind::Event, std::ptr::without_provenance_mut(address)), None);
        }
    }
}
