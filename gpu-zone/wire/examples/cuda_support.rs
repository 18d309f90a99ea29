//! Prints `docs/cuda-support.md`, see `cargo xtask cuda-support`.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

fn main() {
    print!("{}", gpuzone_wire::spec::support_page());
}
