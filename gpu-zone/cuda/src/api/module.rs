use std::ffi::{c_char, c_void};

use gpuzone_cuda_abi::{CUdeviceptr, CUfunction, CUmodule, CuResult};
use gpuzone_wire::ring::Payload;
use gpuzone_wire::spec::{
    ContextId, ModuleData, ModuleGlobal, ModuleId, ModuleKernels, ModuleLoad, ModuleUnload,
};

use super::function::look_up;
use super::jit::{Options, options};
use crate::ffi::{Answer, api, put, put_if_wanted, text};
use crate::handles::{Kind, handle, number};
use crate::images;
use crate::state::{State, with};

/// Loads an image into a context; what the compiler says is written where it is wanted.
pub(super) fn load_into(
    state: &mut State,
    context: ContextId,
    image: &[u8],
    options: &Options,
) -> Answer<ModuleId> {
    if image.is_empty() {
        return Err(CuResult::INVALID_IMAGE);
    }
    for piece in image.chunks(state.piece) {
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
    state.prints |= reply.prints;
    options.info.write(&reply.info_log);
    options.error.write(&reply.error_log);
    CuResult(reply.loaded).ok()?;
    state.modules.insert(module, context);
    Ok(module)
}

fn load(place: *mut CUmodule, image: &[u8], options: &Options) -> Answer {
    if place.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let context = state.context()?;
        let module = load_into(state, context, image, options)?;
        put(place, handle(Kind::Module, module.0))
    })
}

/// Unloads a module and forgets what was in it.
pub(super) fn unload(state: &mut State, id: ModuleId) -> Answer {
    let context = state.modules.remove(&id).ok_or(CuResult::INVALID_HANDLE)?;
    state.functions.retain(|_, function| function.module != id);
    state.by_name.retain(|(module, _), _| *module != id);
    state.ranges.retain(|range| range.module != Some(id));
    let unloaded = state.post_release(context, &ModuleUnload { module: id });
    state.write_prints();
    unloaded
}

/// The names of a module's kernels.
pub(super) fn kernels(state: &mut State, module: ModuleId) -> Answer<Vec<String>> {
    let context = state.modules.get(&module).copied().ok_or(CuResult::INVALID_HANDLE)?;
    Ok(state.call(context, &ModuleKernels { module })?.names)
}

/// Writes as many answers as there are and as there is room for.
pub(super) fn put_all<T>(
    places: *mut T,
    room: u32,
    values: impl Iterator<Item = Answer<T>>,
) -> Answer {
    if places.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    for (index, value) in values.take(room as usize).enumerate() {
        // SAFETY: the driver API's contract: the list has `room` elements.
        put(unsafe { places.add(index) }, value?)?;
    }
    Ok(())
}

/// A variable of a module.
pub(super) fn global(
    state: &mut State,
    module: ModuleId,
    name: String,
    pointer: *mut CUdeviceptr,
    bytes: *mut usize,
) -> Answer {
    let context = state.modules.get(&module).copied().ok_or(CuResult::INVALID_HANDLE)?;
    let reply = state.call(context, &ModuleGlobal { module, name })?;
    state.ranges.add(reply.pointer.0, reply.bytes, context, Some(module));
    put_if_wanted(pointer, reply.pointer.0);
    put_if_wanted(bytes, usize::try_from(reply.bytes).unwrap_or(usize::MAX));
    Ok(())
}

fn load_image(place: *mut CUmodule, image: *const c_void, options: &Options) -> Answer {
    // SAFETY: the driver API's contract is `images::bytes`'s.
    load(place, unsafe { images::bytes(image) }?, options)
}

pub(super) fn module_of(state: &State, module: CUmodule) -> Answer<ModuleId> {
    let id = number(Kind::Module, module).map(ModuleId);
    id.filter(|id| state.modules.contains_key(id)).ok_or(CuResult::INVALID_HANDLE)
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
            unload(state, id)
        })
    }

    fn cuModuleGetFunctionCount(count: *mut u32, module: CUmodule) {
        with(|state| {
            let module = module_of(state, module)?;
            let kernels = kernels(state, module)?.len();
            put(count, u32::try_from(kernels).unwrap_or(u32::MAX))
        })
    }

    fn cuModuleEnumerateFunctions(places: *mut CUfunction, room: u32, module: CUmodule) {
        with(|state| {
            let module = module_of(state, module)?;
            let names = kernels(state, module)?;
            put_all(places, room, names.iter().map(|name| {
                look_up(state, module, name).map(|id| handle(Kind::Function, id.0))
            }))
        })
    }

    fn cuModuleGetFunction(place: *mut CUfunction, module: CUmodule, name: *const c_char) {
        let name = text(name)?;
        with(|state| {
            let module = module_of(state, module)?;
            put(place, handle(Kind::Function, look_up(state, module, name)?.0))
        })
    }

    fn cuModuleGetGlobal_v2(
        pointer: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char,
    ) {
        let name = text(name)?.to_owned();
        with(|state| {
            let module = module_of(state, module)?;
            global(state, module, name, pointer, bytes)
        })
    }
}
