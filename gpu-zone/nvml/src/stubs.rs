//! Functions that the lease does not have, see `build.rs`.
#![allow(non_snake_case, reason = "the names are NVML's")]

include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
