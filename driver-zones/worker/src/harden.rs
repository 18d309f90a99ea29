//! What a worker gives up before it reads the first byte from a tenant.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// No privileges by running a program, no core files with tenants' data in them, no tracing by
/// others of the same user, no files for others.
///
/// # Errors
/// When the kernel refuses.
pub fn harden() -> Result<(), rustix::io::Errno> {
    rustix::thread::set_no_new_privs(true)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    Ok(())
}
