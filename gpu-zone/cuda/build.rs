//! Names the library as the driver's, and writes the functions that it does not support: every
//! name of the driver API that the spec does not know answers "not supported" and is counted.

use std::fmt::Write;

use gpuzone_cuda_abi::FUNCTIONS;
use gpuzone_wire::spec;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo::rerun-if-changed=build.rs");
    let (mut stubs, mut declared, mut listed) = (String::new(), String::new(), String::new());
    for (index, name) in FUNCTIONS.iter().enumerate() {
        writeln!(listed, "    (\"{name}\", {name} as unsafe extern \"C\" fn()),")?;
        if spec::support(name).is_some() {
            // A name that is in the spec and not in this library does not link.
            writeln!(declared, "    fn {name}();")?;
        } else {
            writeln!(
                stubs,
                "// SAFETY: the name is CUDA's, and the answer fits any caller.\n#[unsafe(no_mangle)]\nunsafe extern \"C\" fn {name}() {{\n    crate::stubs::refuse({index});\n}}"
            )?;
        }
    }
    // A function that answers an int and takes anything has the type of its caller's choice;
    // listing all under one type is what looking up by name does anyway.
    let stubs = stubs
        .replace("() {\n    crate::stubs::refuse(", "() -> u32 {\n    crate::stubs::refuse(")
        .replace(");\n}", ")\n}");
    let listed = listed.replace("as unsafe extern \"C\" fn()", "as *const ()");
    let text = format!(
        "{stubs}\nunsafe extern \"C\" {{\n{declared}}}\n\npub(crate) struct Symbols(pub(crate) [(&'static str, *const ()); {}]);\n\npub(crate) static SYMBOLS: Symbols = Symbols([\n{listed}]);\n",
        FUNCTIONS.len()
    );
    let out = std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?;
    std::fs::write(std::path::Path::new(&out).join("stubs.rs"), text)?;
    Ok(())
}
