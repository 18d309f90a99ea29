//! The tenant's libcuda.so.1: forwards CUDA driver calls to the worker of its lease.
//!
//! ```text
//! program ─▶ api::* ─▶ answered here: devices, context stack, pointers, kernels' attributes
//!                └──▶ State (one ring behind a mutex) ─▶ worker
//! ```
//!
//! Architecture invariant: nothing that a limit or another tenant's safety depends on is here.
//! The program can change every byte of this library's memory; the worker checks all of it.

mod api;
mod connect;
mod ffi;
mod graphs;
mod handles;
mod host;
mod images;
mod prints;
mod state;
mod stubs;
mod tables;
mod threads;
