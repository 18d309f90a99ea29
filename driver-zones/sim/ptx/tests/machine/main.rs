//! The machine as its callers see it. One binary, because each links for long.

mod arithmetic;
mod atomics;
mod common;
mod corpus;
mod corpus_calls;
mod corpus_grid;
mod corpus_linear;
mod corpus_matrix;
mod differential;
mod divergence;
mod functions;
mod hostile;
mod kernels;
mod memory;
mod oracle;
mod reference;
mod refusals;
mod roundings;
mod specials;
mod supported;
