use std::ffi::{CString, c_char, c_void};

use gpuzone_cuda_abi::{CUdeviceptr, CUfunction, CUmodule, CuResult, JitOption};
use gpuzone_wire::ring::{MAX_BULK, Payload};
use gpuzone_wire::spec::{
    FunctionId, FunctionSetAttribute, JitSetting, ModuleData, ModuleFunction, ModuleGlobal,
    ModuleId, ModuleLoad, ModuleUnload,
};

use crate::ffi::{Answer, api, put, put_if_wanted, text};
use crate::handles::{Kind, handle, number};
use crate::images;
use crate::state::{State, with};
use crate::tables::Function;

/// Where the program wants a log of the compiler.
#[derive(Default)]
struct Log {
    place: Option<*mut c_char>,
    size: u32,
}

impl Log {
    fn wanted(&self) -> u32 {
        if self.place.is_some() { self.size } else { 0 }
    }

    fn write(&self, text: &[u8]) {
        let (Some(place), Some(most)) = (self.place, (self.size as usize).checked_sub(1)) else {
            return;
        };
        let kept = text.len().min(most);
        // SAFETY: the driver API's contract: the buffer has the size that was given with it.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), place, kept);
            place.add(kept).write(0);
        }
    }
}

#[derive(Default)]
struct Options {
    settings: Vec<JitSetting>,
    info: Log,
    error: Log,
}

/// Reads the options of `cuModuleLoadDataEx`. Numbers go to the worker, which judges them.
fn options(count: u32, names: *const u32, values: *const *mut c_void) -> Answer<Options> {
    let mut read = Options::default();
    if count == 0 {
        return Ok(read);
    }
    if names.is_null() || values.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    for index in 0..count as usize {
        // SAFETY: the driver API's contract: both lists have `count` elements.
        let (name, value) =
            unsafe { (names.add(index).read_unaligned(), values.add(index).read_unaligned()) };
        // A number stands in the pointer's place, as 32 bits.
        #[allow(clippy::cast_possible_truncation)]
        let small = value.addr() as u32;
        let place = Some(value.cast::<c_char>()).filter(|place| !place.is_null());
        match JitOption(name) {
            JitOption::INFO_LOG_BUFFER => read.info.place = place,
            JitOption::INFO_LOG_BUFFER_SIZE_BYTES => read.info.size = small,
            JitOption::ERROR_LOG_BUFFER => read.error.place = place,
            JitOption::ERROR_LOG_BUFFER_SIZE_BYTES => read.error.size = small,
            JitOption::MAX_REGISTERS
            | JitOption::OPTIMIZATION_LEVEL
            | JitOption::TARGET_FROM_CUCONTEXT
            | JitOption::TARGET
            | JitOption::FALLBACK_STRATEGY
            | JitOption::GENERATE_DEBUG_INFO
            | JitOption::GENERATE_LINE_INFO => {
                read.settings.push(JitSetting { option: name, value: value.addr() as u64 });
            }
            // How fast, how loud, from which cache: nothing that a program sees.
            JitOption::THREADS_PER_BLOCK
            | JitOption::WALL_TIME
            | JitOption::LOG_VERBOSE
            | JitOption::CACHE_MODE
            | JitOption::FAST_COMPILE => {}
            _ => return Err(CuResult::NOT_SUPPORTED),
        }
    }
    Ok(read)
}

fn load(place: *mut CUmodule, image: &[u8], options: &Options) -> Answer {
    if place.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    if image.is_empty() {
        return Err(CuResult::INVALID_IMAGE);
    }
    let loaded = with(|state| {
        let context = state.context()?;
        for piece in image.chunks(MAX_BULK) {
            state.client.post(context, &ModuleData {}, Payload::of(piece))?;
        }
        let module = ModuleId(state.new_number());
        let request = ModuleLoad {
            module,
            settings: options.settings.clone(),
            info_log: options.info.wanted(),
            error_log: options.error.wanted(),
        };
        let reply = state.call(context, &request)?;
        if reply.loaded == CuResult::SUCCESS.0 {
            state.modules.insert(module, context);
            put(place, handle(Kind::Module, module.0))?;
        }
        Ok(reply)
    })?;
    options.info.write(&loaded.info_log);
    options.error.write(&loaded.error_log);
    CuResult(loaded.loaded).ok()
}

fn load_image(place: *mut CUmodule, image: *const c_void, options: &Options) -> Answer {
    // SAFETY: the driver API's contract is `images::bytes`'s.
    load(place, unsafe { images::bytes(image) }?, options)
}

fn module_of(state: &State, module: CUmodule) -> Answer<ModuleId> {
    let id = number(Kind::Module, module).map(ModuleId);
    id.filter(|id| state.modules.contains_key(id)).ok_or(CuResult::INVALID_HANDLE)
}

fn function_of(state: &State, function: CUfunction) -> Answer<(FunctionId, &Function)> {
    let id = number(Kind::Function, function).map(FunctionId).ok_or(CuResult::INVALID_HANDLE)?;
    Ok((id, state.functions.get(&id).ok_or(CuResult::INVALID_HANDLE)?))
}

api! {
    fn cuModuleLoad(place: *mut CUmodule, path: *const c_char) {
        let image = std::fs::read(text(path)?).map_err(|_| CuResult::FILE_NOT_FOUND)?;
        load(place, &image, &Options::default())
    }

    fn cuModuleLoadData(place: *mut CUmodule, image: *const c_void) {
        load_image(place, image, &Options::default())
    }

    fn cuModuleLoadDataEx(
        place: *mut CUmodule, image: *const c_void, count: u32, names: *const u32,
        values: *const *mut c_void,
    ) {
        load_image(place, image, &options(count, names, values)?)
    }

    fn cuModuleLoadFatBinary(place: *mut CUmodule, image: *const c_void) {
        load_image(place, image, &Options::default())
    }

    fn cuModuleUnload(module: CUmodule) {
        with(|state| {
            let id = module_of(state, module)?;
            let context = state.modules.get(&id).copied().ok_or(CuResult::INVALID_HANDLE)?;
            state.modules.remove(&id);
            state.functions.retain(|_, function| function.module != id);
            state.by_name.retain(|(module, _), _| *module != id);
            state.ranges.retain(|range| range.module != Some(id));
            state.post_release(context, &ModuleUnload { module: id })
        })
    }

    fn cuModuleGetFunction(place: *mut CUfunction, module: CUmodule, name: *const c_char) {
        let name = text(name)?.to_owned();
        with(|state| {
            let module = module_of(state, module)?;
            let key = (module, name);
            if let Some(known) = state.by_name.get(&key) {
                return put(place, handle(Kind::Function, known.0));
            }
            let context = state.modules.get(&module).copied().ok_or(CuResult::INVALID_HANDLE)?;
            let function = FunctionId(state.new_number());
            let request = ModuleFunction { module, function, name: key.1.clone() };
            let reply = state.call(context, &request)?;
            let (parameters, attributes) = (reply.parameters, reply.attributes);
            let name = CString::new(key.1.as_str()).map_err(|_| CuResult::NOT_FOUND)?;
            let entry = Function { context, module, name, parameters, attributes };
            state.functions.insert(function, entry);
            state.by_name.insert(key, function);
            put(place, handle(Kind::Function, function.0))
        })
    }

    fn cuModuleGetGlobal_v2(
        pointer: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char,
    ) {
        let name = text(name)?.to_owned();
        with(|state| {
            let module = module_of(state, module)?;
            let context = state.modules.get(&module).copied().ok_or(CuResult::INVALID_HANDLE)?;
            let reply = state.call(context, &ModuleGlobal { module, name })?;
            state.ranges.add(reply.pointer.0, reply.bytes, context, Some(module));
            put_if_wanted(pointer, reply.pointer.0);
            put_if_wanted(bytes, usize::try_from(reply.bytes).unwrap_or(usize::MAX));
            Ok(())
        })
    }

    fn cuFuncGetAttribute(value: *mut i32, attribute: i32, function: CUfunction) {
        with(|state| {
            let (_, function) = function_of(state, function)?;
            let index = usize::try_from(attribute).map_err(|_| CuResult::INVALID_VALUE)?;
            let known = function.attributes.get(index);
            put(value, *known.ok_or(CuResult::INVALID_VALUE)?)
        })
    }

    fn cuFuncSetAttribute(function: CUfunction, attribute: i32, value: i32) {
        with(|state| {
            let (id, known) = function_of(state, function)?;
            let context = known.context;
            let request = FunctionSetAttribute { function: id, attribute, value };
            let reply = state.call(context, &request)?;
            if let Some(known) = state.functions.get_mut(&id) {
                known.attributes = reply.attributes;
            }
            Ok(())
        })
    }

    fn cuFuncGetModule(module: *mut CUmodule, function: CUfunction) {
        with(|state| {
            let (_, function) = function_of(state, function)?;
            put(module, handle(Kind::Module, function.module.0))
        })
    }

    fn cuFuncGetName(name: *mut *const c_char, function: CUfunction) {
        // Good until the module is unloaded, as with the driver.
        with(|state| put(name, function_of(state, function)?.1.name.as_ptr()))
    }

    fn cuFuncGetParamInfo(
        function: CUfunction, index: usize, offset: *mut usize, size: *mut usize,
    ) {
        with(|state| {
            let (_, function) = function_of(state, function)?;
            let parameter = function.parameters.get(index).ok_or(CuResult::INVALID_VALUE)?;
            put(offset, parameter.offset as usize)?;
            put_if_wanted(size, parameter.size as usize);
            Ok(())
        })
    }

    fn cuFuncIsLoaded(loaded: *mut u32, function: CUfunction) {
        with(|state| {
            function_of(state, function)?;
            put(loaded, 1)
        })
    }

    fn cuFuncLoad(function: CUfunction) {
        with(|state| function_of(state, function).map(|_| ()))
    }

    fn cuFuncSetCacheConfig(function: CUfunction, config: u32) {
        if config > 3 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| function_of(state, function).map(|_| ()))
    }
}
