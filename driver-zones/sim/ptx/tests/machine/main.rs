//! The machine as its callers see it. One binary, because each links for long.

mod arithmetic;
mod common;
mod corpus;
mod divergence;
mod functions;
mod hostile;
mod kernels;
mod memory;
mod refusals;
