//! The functions of the driver API that are supported.

mod context;
mod copy;
mod device;
mod event;
mod general;
mod launch;
mod memory;
mod module;
mod pointer;
mod primary;
mod stream;
