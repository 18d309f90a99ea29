use std::sync::Arc;

use gpuzone_cuda_abi::{CuResult, FunctionAttribute};

use super::{jit, module};
use crate::Answer;
use crate::abi::{Array, Image, Out, Text, Word, entry_points};
use crate::driver::{current, driver, gpu};
use crate::handles::{self, Object};
use crate::library::{self, Library};
use crate::module::Module;

fn load(image: &[u8], count: u32, options: Array<u32>, values: Array<Word>) -> Answer<Word> {
    driver()?;
    let library = Library::new(image);
    jit::load_with(count, options, values, || {
        // What is wrong with the image is said now where there is a context to load it into.
        if let Ok(context) = current() {
            library.module_in(&context)?;
        }
        Ok(handles::insert(|_| Object::Library(library)))
    })
}

/// A library's module in the current context, and that one's handle.
fn module_of(library: Word) -> Answer<(Word, Arc<Module>)> {
    let library = handles::library(library)?;
    library.module_in(&current()?).map_err(|refusal| refusal.result)
}

/// A kernel by its name, which is to be one.
fn kernel_of(library: Word, name: &str) -> Answer<Word> {
    module_of(library)?.1.function(name)?;
    library::kernel(&handles::library(library)?, library, name)
}

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
        library.put(load(code.bytes()?, count, options, values)?)
    }

    fn cuLibraryLoadFromFile(
        library: Out<Word>,
        path: Text,
        options: Array<u32>,
        values: Array<Word>,
        count: u32,
        _library_options: Array<u32>,
        _library_values: Array<Word>,
        _library_count: u32,
    ) {
        library.check()?;
        library.put(load(&module::read_image(path.read()?)?, count, options, values)?)
    }

    fn cuLibraryUnload(library: Word) {
        let gone = handles::library(library)?;
        handles::remove(library);
        handles::remove_kernels(&gone);
        gone.unload()
    }

    fn cuLibraryGetKernel(kernel: Out<Word>, library: Word, name: Text) {
        kernel.check()?;
        kernel.put(kernel_of(library, name.read()?)?)
    }

    fn cuLibraryGetModule(module: Out<Word>, library: Word) {
        module.put(module_of(library)?.0)
    }

    fn cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: Word, name: Text) {
        let (at, size) = module_of(library)?.1.global(name.read()?)?;
        address.put_if_wanted(at);
        bytes.put_if_wanted(usize::try_from(size).map_err(|_| CuResult::UNKNOWN)?);
        Ok(())
    }

    fn cuLibraryGetKernelCount(count: Out<u32>, library: Word) {
        let kernels = module_of(library)?.1.code().kernels().count();
        count.put(u32::try_from(kernels).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuLibraryEnumerateKernels(kernels: Array<Word>, count: u32, library: Word) {
        let (_, module) = module_of(library)?;
        let room = usize::try_from(count).map_err(|_| CuResult::INVALID_VALUE)?;
        for (index, kernel) in module.code().kernels().enumerate().take(room) {
            kernels.set(index, kernel_of(library, kernel.name())?)?;
        }
        Ok(())
    }

    fn cuKernelGetFunction(function: Out<Word>, kernel: Word) {
        function.put(handles::kernel(kernel)?.handle_in(&current()?)?)
    }

    fn cuKernelGetLibrary(library: Out<Word>, kernel: Word) {
        library.put(handles::kernel(kernel)?.handle)
    }

    fn cuKernelGetName(name: Out<*const std::ffi::c_char>, kernel: Word) {
        name.put(module::c_name(&handles::kernel(kernel)?.name)?)
    }

    fn cuKernelGetAttribute(value: Out<i32>, attribute: i32, kernel: Word, device: i32) {
        gpu(device)?;
        value.put(handles::function(kernel)?.attribute(FunctionAttribute(attribute))?)
    }

    fn cuKernelSetAttribute(attribute: i32, value: i32, kernel: Word, device: i32) {
        gpu(device)?;
        handles::function(kernel)?.set_attribute(FunctionAttribute(attribute), value)
    }

    fn cuKernelSetCacheConfig(kernel: Word, config: u32, device: i32) {
        gpu(device)?;
        handles::kernel(kernel)?;
        if config > 3 { Err(CuResult::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuKernelGetParamInfo(kernel: Word, index: usize, offset: Out<usize>, size: Out<usize>) {
        module::param_info(kernel, index, offset, size)
    }
}
