//! NVML's functions, as far as a lease has an answer.

mod device;
mod find;
mod processes;
mod system;
