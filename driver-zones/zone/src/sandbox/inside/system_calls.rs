//! System calls that no safe interface at hand has.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// mount_setattr(2) on an open mount.
pub(super) fn mount_setattr(
    mount: BorrowedFd<'_>,
    flags: c_int,
    attributes: &libc::mount_attr,
) -> io::Result<()> {
    const EMPTY: &CStr = c"";
    // SAFETY: the path and the structure live through the call, and the size is the structure's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::c_long::from(mount.as_raw_fd()),
            EMPTY.as_ptr(),
            libc::c_long::from(flags),
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
