mod context;
mod copy;
mod device;
mod event;
mod function;
mod general;
mod jit;
mod launch;
mod library;
mod link;
mod memory;
mod module;
mod pointer;
mod primary;
mod stream;

pub(crate) use jit::Options;
