//! Lets the driver's library find the worker's `ioctl` (`src/ioctl.rs`) before the C library's.

fn main() {
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=ioctl");
    println!("cargo::rerun-if-changed=build.rs");
}
