use std::ffi::{CString, c_char};

use gpuzone_cuda_abi::{CUfunction, CUmodule, CuResult};
use gpuzone_wire::spec::{ContextId, FunctionId, FunctionSetAttribute, ModuleFunction, ModuleId};

use super::library::function_of_kernel;
use crate::ffi::{Answer, api, put, put_if_wanted};
use crate::handles::{Kind, handle, number};
use crate::state::{State, with};
use crate::tables::Function;

/// A kernel of a module, looked up once.
pub(super) fn look_up(state: &mut State, module: ModuleId, name: &str) -> Answer<FunctionId> {
    let key = (module, name.to_owned());
    if let Some(known) = state.by_name.get(&key) {
        return Ok(*known);
    }
    let context = state.modules.get(&module).copied().ok_or(CuResult::INVALID_HANDLE)?;
    let function = FunctionId(state.new_number());
    let request = ModuleFunction { module, function, name: name.to_owned() };
    let reply = state.call(context, &request)?;
    let (parameters, attributes) = (reply.parameters, reply.attributes);
    let name = CString::new(name).map_err(|_| CuResult::NOT_FOUND)?;
    let entry = Function { context, module, name, parameters, attributes };
    state.functions.insert(function, entry);
    state.by_name.insert(key, function);
    Ok(function)
}

/// The function behind a handle. Programs pass a library's kernel as well, which is loaded into
/// the current context then.
pub(super) fn function_of(state: &mut State, handle: CUfunction) -> Answer<FunctionId> {
    match number(Kind::Function, handle).map(FunctionId) {
        Some(id) if state.functions.contains_key(&id) => Ok(id),
        Some(_) => Err(CuResult::INVALID_HANDLE),
        None => {
            let context = state.context()?;
            function_of_kernel(state, handle, context)
        }
    }
}

pub(super) fn known(state: &State, id: FunctionId) -> Answer<&Function> {
    state.functions.get(&id).ok_or(CuResult::INVALID_HANDLE)
}

pub(super) fn put_attribute(place: *mut i32, function: &Function, attribute: i32) -> Answer {
    let index = usize::try_from(attribute).map_err(|_| CuResult::INVALID_VALUE)?;
    put(place, *function.attributes.get(index).ok_or(CuResult::INVALID_VALUE)?)
}

pub(super) fn set_attribute(
    state: &mut State,
    id: FunctionId,
    attribute: i32,
    value: i32,
) -> Answer {
    let context: ContextId = known(state, id)?.context;
    let request = FunctionSetAttribute { function: id, attribute, value };
    let reply = state.call(context, &request)?;
    if let Some(known) = state.functions.get_mut(&id) {
        known.attributes = reply.attributes;
    }
    Ok(())
}

pub(super) fn put_parameter(
    function: &Function,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> Answer {
    let parameter = function.parameters.get(index).ok_or(CuResult::INVALID_VALUE)?;
    put(offset, parameter.offset as usize)?;
    put_if_wanted(size, parameter.size as usize);
    Ok(())
}

/// Hints that the device may follow or not.
pub(super) fn hint(function: CUfunction, config: u32, most: u32) -> Answer {
    if config > most {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| function_of(state, function).map(drop))
}

api! {
    fn cuFuncGetAttribute(value: *mut i32, attribute: i32, function: CUfunction) {
        with(|state| {
            let id = function_of(state, function)?;
            put_attribute(value, known(state, id)?, attribute)
        })
    }

    fn cuFuncSetAttribute(function: CUfunction, attribute: i32, value: i32) {
        with(|state| {
            let id = function_of(state, function)?;
            set_attribute(state, id, attribute, value)
        })
    }

    fn cuFuncGetModule(module: *mut CUmodule, function: CUfunction) {
        with(|state| {
            let id = function_of(state, function)?;
            put(module, handle(Kind::Module, known(state, id)?.module.0))
        })
    }

    fn cuFuncGetName(name: *mut *const c_char, function: CUfunction) {
        // Good until the module is unloaded, as with the driver.
        with(|state| {
            let id = function_of(state, function)?;
            put(name, known(state, id)?.name.as_ptr())
        })
    }

    fn cuFuncGetParamInfo(
        function: CUfunction, index: usize, offset: *mut usize, size: *mut usize,
    ) {
        with(|state| {
            let id = function_of(state, function)?;
            put_parameter(known(state, id)?, index, offset, size)
        })
    }

    fn cuFuncIsLoaded(loaded: *mut u32, function: CUfunction) {
        with(|state| {
            function_of(state, function)?;
            put(loaded, 1)
        })
    }

    fn cuFuncLoad(function: CUfunction) {
        with(|state| function_of(state, function).map(drop))
    }

    fn cuFuncSetCacheConfig(function: CUfunction, config: u32) {
        hint(function, config, 3)
    }

    fn cuFuncSetSharedMemConfig(function: CUfunction, config: u32) {
        hint(function, config, 2)
    }
}
