//! What measurements of tenants' programs are held against.
#![forbid(unsafe_code)]

pub mod compare;
