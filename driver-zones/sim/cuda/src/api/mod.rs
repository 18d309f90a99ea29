//! The exported functions, as CUDA documents them.

mod attributes;
mod context;
mod copy;
mod device;
mod event;
mod global;
mod jit;
mod lane;
mod launch;
mod library;
mod link;
mod memory;
mod module;
mod occupancy;
mod physical;
mod pointer;
mod pool;
mod primary;
mod rows;
mod stream;

use std::ffi::c_void;

pub(crate) use link::Linking;

/// The address of an exported function.
fn symbol(name: &str) -> Option<*const c_void> {
    let files = [
        context::symbol,
        copy::symbol,
        device::symbol,
        event::symbol,
        global::symbol,
        launch::symbol,
        library::symbol,
        link::symbol,
        memory::symbol,
        module::symbol,
        occupancy::symbol,
        physical::symbol,
        pointer::symbol,
        pool::symbol,
        primary::symbol,
        rows::symbol,
        stream::symbol,
    ];
    files.into_iter().find_map(|symbol| symbol(name))
}
