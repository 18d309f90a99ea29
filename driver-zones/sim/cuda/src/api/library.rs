//! Libraries and kernels: modules and functions under the names that newer programs use. A
//! library is loaded into the context that is current when it is asked for.

use gpuzone_cuda_abi::{CuResult, FunctionAttribute};

use super::{jit, module};
use crate::abi::{Array, Image, Out, Text, Word, entry_points};
use crate::driver::{current, driver, gpu};
use crate::handles;

entry_points! {
    fn cuLibraryLoadData(
        library: Out<Word>,
        code: Image,
        options: Array<u32>,
        values: Array<Word>,
        count: u32,
        _library_options: Array<u32>,
        _library_values: Array<Word>,
        _library_count: u32,
    ) {
        library.check()?;
        driver()?;
        library.put(jit::load(code.bytes()?, count, options, values)?)
    }

    fn cuLibraryUnload(library: Word) {
        current()?;
        handles::module(library)?.unload(library)
    }

    fn cuLibraryGetKernel(kernel: Out<Word>, library: Word, name: Text) {
        kernel.check()?;
        driver()?;
        kernel.put(handles::module(library)?.function(name.read()?)?)
    }

    fn cuLibraryGetModule(module: Out<Word>, library: Word) {
        driver()?;
        handles::module(library)?;
        module.put(library)
    }

    fn cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: Word, name: Text) {
        driver()?;
        let (at, size) = handles::module(library)?.global(name.read()?)?;
        address.put_if_wanted(at);
        bytes.put_if_wanted(usize::try_from(size).map_err(|_| CuResult::UNKNOWN)?);
        Ok(())
    }

    fn cuLibraryGetKernelCount(count: Out<u32>, library: Word) {
        driver()?;
        let kernels = handles::module(library)?.code().kernels().count();
        count.put(u32::try_from(kernels).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuKernelGetFunction(function: Out<Word>, kernel: Word) {
        driver()?;
        handles::function(kernel)?;
        function.put(kernel)
    }

    fn cuKernelGetAttribute(value: Out<i32>, attribute: i32, kernel: Word, device: i32) {
        gpu(device)?;
        value.put(handles::function(kernel)?.attribute(FunctionAttribute(attribute))?)
    }

    fn cuKernelSetAttribute(attribute: i32, value: i32, kernel: Word, device: i32) {
        gpu(device)?;
        handles::function(kernel)?.set_attribute(FunctionAttribute(attribute), value)
    }

    fn cuKernelGetParamInfo(kernel: Word, index: usize, offset: Out<usize>, size: Out<usize>) {
        module::param_info(kernel, index, offset, size)
    }
}
