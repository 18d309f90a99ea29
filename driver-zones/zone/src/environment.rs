use std::ffi::OsStr;
use std::io;

/// Why a variable cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SetVariableError {
    /// Another thread may be reading the environment.
    #[error("the environment can only be changed before threads start; {0} threads run")]
    Threads(usize),
    /// The threads could not be counted.
    #[error("cannot read /proc/self/task to count this process's threads")]
    Proc(#[from] io::Error),
}

/// Sets an environment variable of this process, for libraries that are configured by one.
///
/// # Errors
/// When this process has more than one thread.
pub fn set_variable(name: &OsStr, value: &OsStr) -> Result<(), SetVariableError> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(SetVariableError::Threads(threads));
    }
    // SAFETY: no other thread exists that could read the environment at the same time, and only
    // this thread could start one.
    unsafe { std::env::set_var(name, value) };
    Ok(())
}
