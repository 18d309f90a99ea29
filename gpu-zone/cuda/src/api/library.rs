//! Libraries: images that are loaded into whatever context asks for one of their kernels. They and
//! their kernels are this process's own; the worker knows of modules only.

use std::ffi::{CString, c_char, c_void};

use gpuzone_cuda_abi::{CUdevice, CUdeviceptr, CUfunction, CUmodule, CuResult};
use gpuzone_wire::spec::{ContextId, FunctionId, ModuleId};

use super::function::{hint, known, look_up, put_attribute, put_parameter, set_attribute};
use super::jit::{Options, options};
use super::module::{global, kernels, load_into, put_all, unload};
use crate::ffi::{Answer, api, put, text};
use crate::handles::{Kind, handle, number};
use crate::images;
use crate::state::{State, current, with};
use crate::tables::{HashMap, Kernel, Library};

/// `CU_LIBRARY_BINARY_IS_PRESERVED`: the program keeps the image; a copy is taken all the same.
const BINARY_IS_PRESERVED: u32 = 1;

fn load(
    place: *mut *mut c_void,
    image: &[u8],
    options: Options,
    library_options: (u32, *const u32),
) -> Answer {
    if place.is_null() || image.is_empty() {
        return Err(CuResult::INVALID_VALUE);
    }
    let (count, names) = library_options;
    for index in 0..count as usize {
        if names.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: the list has `count` elements.
        if unsafe { names.add(index).read_unaligned() } != BINARY_IS_PRESERVED {
            return Err(CuResult::NOT_SUPPORTED);
        }
    }
    let context = current()?;
    with(|state| {
        let id = state.new_number();
        let mut modules = HashMap::default();
        // What is wrong with the image is said now where there is a context to load it into.
        if let Some(context) = context.filter(|context| state.contexts.contains_key(context)) {
            modules.insert(context, load_into(state, context, image, &options)?);
        }
        // The program's buffers are its own again when this returns.
        let options = Options { settings: options.settings, ..Options::default() };
        let library =
            Library { image: image.to_vec(), options, modules, kernels: HashMap::default() };
        state.libraries.insert(id, library);
        put(place, handle(Kind::Library, id))
    })
}

fn library_of(state: &State, library: *mut c_void) -> Answer<u32> {
    let id = number(Kind::Library, library);
    id.filter(|id| state.libraries.contains_key(id)).ok_or(CuResult::INVALID_HANDLE)
}

/// The library's module in a context.
fn module_in(state: &mut State, id: u32, context: ContextId) -> Answer<ModuleId> {
    let library = state.libraries.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
    if let Some(module) = library.modules.get(&context) {
        return Ok(*module);
    }
    let (image, options) = (library.image.clone(), library.options.clone());
    let module = load_into(state, context, &image, &options)?;
    if let Some(library) = state.libraries.get_mut(&id) {
        library.modules.insert(context, module);
    }
    Ok(module)
}

/// The library's module in the current context, or in any that has it.
fn some_module(state: &mut State, id: u32) -> Answer<ModuleId> {
    match state.context() {
        Ok(context) => module_in(state, id, context),
        Err(error) => {
            let library = state.libraries.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
            library.modules.values().next().copied().ok_or(error)
        }
    }
}

fn kernel_of(state: &State, kernel: *mut c_void) -> Answer<u32> {
    let id = number(Kind::Kernel, kernel);
    id.filter(|id| state.kernels.contains_key(id)).ok_or(CuResult::INVALID_HANDLE)
}

/// A kernel of a library by its name, which is to be one.
fn kernel_named(state: &mut State, library: u32, name: &str) -> Answer<u32> {
    let of_library = state.libraries.get(&library).ok_or(CuResult::INVALID_HANDLE)?;
    if let Some(known) = of_library.kernels.get(name) {
        return Ok(*known);
    }
    let module = some_module(state, library)?;
    let function = look_up(state, module, name)?;
    let context = known(state, function)?.context;
    let functions = [(context, function)].into_iter().collect();
    let id = state.new_number();
    let text = CString::new(name).map_err(|_| CuResult::NOT_FOUND)?;
    state.kernels.insert(id, Kernel { library, name: text, functions });
    if let Some(of_library) = state.libraries.get_mut(&library) {
        of_library.kernels.insert(name.to_owned(), id);
    }
    Ok(id)
}

/// The function that a library's kernel is in a context.
pub(super) fn function_of_kernel(
    state: &mut State,
    kernel: *mut c_void,
    context: ContextId,
) -> Answer<FunctionId> {
    let id = kernel_of(state, kernel)?;
    let known = state.kernels.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
    if let Some(function) = known.functions.get(&context) {
        return Ok(*function);
    }
    let (library, name) = (known.library, known.name.clone());
    let module = module_in(state, library, context)?;
    let name = name.to_str().map_err(|_| CuResult::NOT_FOUND)?;
    let function = look_up(state, module, name)?;
    if let Some(known) = state.kernels.get_mut(&id) {
        known.functions.insert(context, function);
    }
    Ok(function)
}

/// The function that a kernel is on a GPU: in the current context, or any of that GPU.
fn function_on(state: &mut State, kernel: *mut c_void, device: CUdevice) -> Answer<FunctionId> {
    let device = state.device(device)?;
    let context = state.context_on(device)?;
    function_of_kernel(state, kernel, context)
}

api! {
    fn cuLibraryLoadData(
        library: *mut *mut c_void, code: *const c_void,
        names: *const u32, values: *const *mut c_void, count: u32,
        library_names: *const u32, _library_values: *const *mut c_void, library_count: u32,
    ) {
        // SAFETY: the driver API's contract is `images::bytes`'s.
        let image = unsafe { images::bytes(code) }?;
        load(library, image, options(count, names, values)?, (library_count, library_names))
    }

    fn cuLibraryLoadFromFile(
        library: *mut *mut c_void, path: *const c_char,
        names: *const u32, values: *const *mut c_void, count: u32,
        library_names: *const u32, _library_values: *const *mut c_void, library_count: u32,
    ) {
        let image = std::fs::read(text(path)?).map_err(|_| CuResult::FILE_NOT_FOUND)?;
        load(library, &image, options(count, names, values)?, (library_count, library_names))
    }

    fn cuLibraryUnload(library: *mut c_void) {
        with(|state| {
            let id = library_of(state, library)?;
            let gone = state.libraries.remove(&id).ok_or(CuResult::INVALID_HANDLE)?;
            state.kernels.retain(|_, kernel| kernel.library != id);
            let mut first = Ok(());
            for module in gone.modules.into_values() {
                first = first.and(unload(state, module));
            }
            first
        })
    }

    fn cuLibraryGetKernel(kernel: *mut *mut c_void, library: *mut c_void, name: *const c_char) {
        let name = text(name)?;
        with(|state| {
            let library = library_of(state, library)?;
            put(kernel, handle(Kind::Kernel, kernel_named(state, library, name)?))
        })
    }

    fn cuLibraryGetModule(module: *mut CUmodule, library: *mut c_void) {
        with(|state| {
            let library = library_of(state, library)?;
            let context = state.context()?;
            put(module, handle(Kind::Module, module_in(state, library, context)?.0))
        })
    }

    fn cuLibraryGetGlobal(
        pointer: *mut CUdeviceptr, bytes: *mut usize, library: *mut c_void, name: *const c_char,
    ) {
        let name = text(name)?.to_owned();
        with(|state| {
            let library = library_of(state, library)?;
            let context = state.context()?;
            let module = module_in(state, library, context)?;
            global(state, module, name, pointer, bytes)
        })
    }

    fn cuLibraryGetKernelCount(count: *mut u32, library: *mut c_void) {
        with(|state| {
            let library = library_of(state, library)?;
            let module = some_module(state, library)?;
            let kernels = kernels(state, module)?.len();
            put(count, u32::try_from(kernels).unwrap_or(u32::MAX))
        })
    }

    fn cuLibraryEnumerateKernels(places: *mut *mut c_void, room: u32, library: *mut c_void) {
        with(|state| {
            let library = library_of(state, library)?;
            let module = some_module(state, library)?;
            let names = kernels(state, module)?;
            put_all(places, room, names.iter().map(|name| {
                kernel_named(state, library, name).map(|id| handle(Kind::Kernel, id))
            }))
        })
    }

    fn cuKernelGetFunction(function: *mut CUfunction, kernel: *mut c_void) {
        with(|state| {
            let context = state.context()?;
            let id = function_of_kernel(state, kernel, context)?;
            put(function, handle(Kind::Function, id.0))
        })
    }

    fn cuKernelGetLibrary(library: *mut *mut c_void, kernel: *mut c_void) {
        with(|state| {
            let id = kernel_of(state, kernel)?;
            let known = state.kernels.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
            put(library, handle(Kind::Library, known.library))
        })
    }

    fn cuKernelGetName(name: *mut *const c_char, kernel: *mut c_void) {
        with(|state| {
            let id = kernel_of(state, kernel)?;
            let known = state.kernels.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
            // Good until the library is unloaded, as with the driver.
            put(name, known.name.as_ptr())
        })
    }

    fn cuKernelGetAttribute(
        value: *mut i32, attribute: i32, kernel: *mut c_void, device: CUdevice,
    ) {
        with(|state| {
            let id = function_on(state, kernel, device)?;
            put_attribute(value, known(state, id)?, attribute)
        })
    }

    fn cuKernelSetAttribute(attribute: i32, value: i32, kernel: *mut c_void, device: CUdevice) {
        with(|state| {
            let id = function_on(state, kernel, device)?;
            set_attribute(state, id, attribute, value)
        })
    }

    fn cuKernelSetCacheConfig(kernel: *mut c_void, config: u32, device: CUdevice) {
        with(|state| function_on(state, kernel, device).map(drop))?;
        hint(kernel, config, 3)
    }

    fn cuKernelGetParamInfo(
        kernel: *mut c_void, index: usize, offset: *mut usize, size: *mut usize,
    ) {
        with(|state| {
            let id = kernel_of(state, kernel)?;
            let of_kernel = state.kernels.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
            let function = of_kernel.functions.values().next().copied();
            let function = function.ok_or(CuResult::INVALID_CONTEXT)?;
            put_parameter(known(state, function)?, index, offset, size)
        })
    }
}
