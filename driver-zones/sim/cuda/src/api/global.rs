//! Initialisation, versions, error texts, and how programs find functions.

use std::ffi::{CString, c_char, c_void};
use std::sync::LazyLock;

use gpuzone_cuda_abi::{API_VERSION, CuResult, module_loading, proc_address};

use super::symbol as find_symbol;
use crate::abi::{Out, Text, Word, entry_points};
use crate::driver;

/// Texts of all results, as C wants them.
static TEXTS: LazyLock<Vec<(CuResult, CString, CString)>> = LazyLock::new(|| {
    let c = |text: Option<&str>| CString::new(text.unwrap_or_default()).unwrap_or_default();
    CuResult::ALL.iter().map(|r| (*r, c(r.name()), c(r.description()))).collect()
});

fn texts(result: u32) -> Option<&'static (CuResult, CString, CString)> {
    TEXTS.iter().find(|(known, _, _)| known.0 == result)
}

/// Functions whose parameters changed under one name: from which version on which is meant.
const CHANGED: [(&str, i32, &str); 5] = [
    ("cuCtxCreate", 13_000, "cuCtxCreate_v4"),
    ("cuCtxCreate", 11_040, "cuCtxCreate_v3"),
    ("cuDeviceGetUuid", 11_040, "cuDeviceGetUuid_v2"),
    ("cuEventElapsedTime", 12_080, "cuEventElapsedTime_v2"),
    ("cuGetProcAddress", 12_000, "cuGetProcAddress_v2"),
];

/// What `name` means to a program made for `version`: the newest function of that name that
/// this version has.
fn resolve(name: &str, version: i32) -> Option<*const c_void> {
    if name.contains("_v") {
        return find_symbol(name);
    }
    let changed = CHANGED.iter().filter(|(base, _, _)| *base == name);
    if let Some((_, _, full)) = changed.clone().find(|(_, from, _)| version >= *from) {
        return find_symbol(full);
    }
    let second = if changed.count() > 0 && name != "cuCtxCreate" {
        None
    } else {
        find_symbol(&format!("{name}_v2"))
    };
    second.or_else(|| find_symbol(name))
}

entry_points! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        driver::initialise()
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.put(API_VERSION)
    }

    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        mode.put(module_loading::EAGER)
    }

    fn cuGetErrorName(error: u32, text: Out<*const c_char>) {
        match texts(error) {
            Some((_, name, _)) => text.put(name.as_ptr()),
            None => {
                text.put(std::ptr::null())?;
                Err(CuResult::INVALID_VALUE)
            }
        }
    }

    fn cuGetErrorString(error: u32, text: Out<*const c_char>) {
        match texts(error) {
            Some((_, _, description)) => text.put(description.as_ptr()),
            None => {
                text.put(std::ptr::null())?;
                Err(CuResult::INVALID_VALUE)
            }
        }
    }

    fn cuGetProcAddress(name: Text, function: Out<*const c_void>, version: i32, _flags: u64) {
        function.check()?;
        let found = resolve(name.read()?, version);
        function.put(found.unwrap_or(std::ptr::null()))?;
        found.map(drop).ok_or(CuResult::NOT_FOUND)
    }

    fn cuGetProcAddress_v2(
        name: Text,
        function: Out<*const c_void>,
        version: i32,
        _flags: u64,
        status: Out<u32>,
    ) {
        function.check()?;
        let found = resolve(name.read()?, version);
        function.put(found.unwrap_or(std::ptr::null()))?;
        let answered = match found {
            Some(_) => proc_address::SUCCESS,
            None => proc_address::SYMBOL_NOT_FOUND,
        };
        // Who takes the status learns from it; who does not must learn from the result.
        if status.check().is_ok() {
            status.put(answered)
        } else {
            found.map(drop).ok_or(CuResult::NOT_FOUND)
        }
    }

    /// Private tables between NVIDIA's own libraries.
    fn cuGetExportTable(table: Out<*const c_void>, _id: Word) {
        table.put(std::ptr::null())?;
        Err(CuResult::NOT_SUPPORTED)
    }
}
