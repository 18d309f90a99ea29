use gpuzone_cuda_abi::{CuResult, FunctionAttribute};

use super::jit;
use crate::abi::{Array, Image, Out, Text, Word, entry_points};
use crate::driver::{current, driver};
use crate::handles;

/// As much PTX as the processor reads; a file beyond it is no module.
const MAX_FILE: u64 = 32 << 20;

/// Names that `cuFuncGetName` gave out, which live as long as the process.
pub(super) fn c_name(name: &str) -> crate::Answer<*const std::ffi::c_char> {
    use std::collections::BTreeMap;
    use std::ffi::CString;
    use std::sync::{Mutex, PoisonError};
    static NAMES: Mutex<BTreeMap<String, CString>> = Mutex::new(BTreeMap::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return Ok(known.as_ptr());
    }
    let text = CString::new(name).map_err(|_| CuResult::UNKNOWN)?;
    Ok(names.entry(name.to_owned()).or_insert(text).as_ptr())
}

/// A module's image in a file.
pub(super) fn read_image(path: &str) -> crate::Answer<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(|_| CuResult::FILE_NOT_FOUND)?.len();
    if size > MAX_FILE {
        return Err(CuResult::INVALID_IMAGE);
    }
    std::fs::read(path).map_err(|_| CuResult::FILE_NOT_FOUND)
}

pub(super) fn param_info(
    function: Word,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> crate::Answer {
    driver()?;
    let function = handles::function(function)?;
    let param = function.kernel()?.params().get(index).ok_or(CuResult::INVALID_VALUE)?;
    let wide = |value: u32| usize::try_from(value).map_err(|_| CuResult::UNKNOWN);
    offset.put(wide(param.offset)?)?;
    size.put_if_wanted(wide(param.size)?);
    Ok(())
}

entry_points! {
    fn cuModuleLoadData(module: Out<Word>, image: Image) {
        module.check()?;
        driver()?;
        module.put(jit::load_plain(image.bytes()?)?)
    }

    fn cuModuleLoadDataEx(
        module: Out<Word>,
        image: Image,
        count: u32,
        options: Array<u32>,
        values: Array<Word>,
    ) {
        module.check()?;
        driver()?;
        module.put(jit::load(image.bytes()?, count, options, values)?)
    }

    fn cuModuleLoadFatBinary(module: Out<Word>, image: Image) {
        module.check()?;
        driver()?;
        module.put(jit::load_plain(image.bytes()?)?)
    }

    fn cuModuleLoad(module: Out<Word>, path: Text) {
        module.check()?;
        current()?;
        module.put(jit::load_plain(&read_image(path.read()?)?)?)
    }

    fn cuModuleUnload(module: Word) {
        current()?;
        handles::module(module)?.unload(module)
    }

    fn cuModuleGetFunction(function: Out<Word>, module: Word, name: Text) {
        function.check()?;
        current()?;
        function.put(handles::module(module)?.function(name.read()?)?)
    }

    fn cuModuleGetFunctionCount(count: Out<u32>, module: Word) {
        current()?;
        let kernels = handles::module(module)?.code().kernels().count();
        count.put(u32::try_from(kernels).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuModuleEnumerateFunctions(functions: Array<Word>, count: u32, module: Word) {
        current()?;
        let module = handles::module(module)?;
        let room = usize::try_from(count).map_err(|_| CuResult::INVALID_VALUE)?;
        for (index, kernel) in module.code().kernels().enumerate().take(room) {
            functions.set(index, module.function(kernel.name())?)?;
        }
        Ok(())
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Word, name: Text) {
        current()?;
        let (at, size) = handles::module(module)?.global(name.read()?)?;
        address.put_if_wanted(at);
        bytes.put_if_wanted(usize::try_from(size).map_err(|_| CuResult::UNKNOWN)?);
        Ok(())
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: i32, function: Word) {
        value.check()?;
        current()?;
        value.put(handles::function(function)?.attribute(FunctionAttribute(attribute))?)
    }

    fn cuFuncSetAttribute(function: Word, attribute: i32, value: i32) {
        current()?;
        handles::function(function)?.set_attribute(FunctionAttribute(attribute), value)
    }

    fn cuFuncSetCacheConfig(function: Word, config: u32) {
        current()?;
        handles::function(function)?;
        if config > 3 { Err(CuResult::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuFuncGetModule(module: Out<Word>, function: Word) {
        current()?;
        let function = handles::function(function)?;
        module.put(handles::module_handle(function.module()).ok_or(CuResult::INVALID_HANDLE)?)
    }

    fn cuFuncGetName(name: Out<*const std::ffi::c_char>, function: Word) {
        driver()?;
        name.put(c_name(handles::function(function)?.name())?)
    }

    fn cuFuncGetParamInfo(function: Word, index: usize, offset: Out<usize>, size: Out<usize>) {
        param_info(function, index, offset, size)
    }

    fn cuFuncIsLoaded(state: Out<u32>, function: Word) {
        driver()?;
        handles::function(function)?;
        state.put(1)
    }

    fn cuFuncLoad(function: Word) {
        driver()?;
        handles::function(function).map(drop)
    }
}
