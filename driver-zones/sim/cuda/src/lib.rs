//! libcuda.so.1 of the simulated GPU: the CUDA driver API on the CPU.
//!
//! ```text
//! program ─▶ api::* (C ABI) ─▶ Context ─submit─▶ Executor (one thread per context, in order)
//!               │                 │                    │
//!            handles          allocations        gpuzone_sim_ptx, DeviceMap
//!          (a table: a number    (gpuzone_sim_device:
//!          not in it is no handle) shared by all processes)
//! ```
//!
//! * A context's work runs in the order in which it was submitted, whatever its streams:
//!   every order that streams and events allow is one of the orders a program must expect.
//! * A fault of a kernel sticks to its context until that is destroyed; others go on.
//! * Everything the library opens, it opens in `cuInit`, so that a process may shut itself
//!   in a sandbox afterwards.
//! * It exports what it does and nothing else: a function that is not there is not found.
//!
//! Limits: PTX only, of which the linker takes one; no managed memory, peer access, graphs or
//! textures; pools reserve what is used; mapped memory is of the first GPU.

mod abi;
mod api;
mod context;
mod driver;
mod engine;
mod event;
mod executor;
mod function;
mod handles;
mod hmm;
mod host_memory;
mod image;
mod library;
mod link;
mod memory;
mod module;
mod physical;
mod pool;
mod work;

/// What every call answers, with success as `Ok`.
type Answer<T = ()> = Result<T, gpuzone_cuda_abi::CuResult>;
