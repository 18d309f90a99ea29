use std::ffi::c_void;

use gpuzone_cuda_abi::{CUcontext, CUdevice, CuResult, ctx_flags};
use gpuzone_wire::spec::{ContextId, ContextLimit, ContextSetLimit, ContextSynchronize};

use crate::ffi::{Answer, api, put, put_if_wanted};
use crate::handles::{Kind, handle};
use crate::state::{State, current, with, with_stack};
use crate::tables::Context;

fn known(state: &mut State, context: ContextId) -> Answer<&mut Context> {
    state.contexts.get_mut(&context).ok_or(CuResult::INVALID_CONTEXT)
}

fn put_device(context: CUcontext, device: *mut CUdevice) -> Answer {
    with(|state| {
        let context = meant(state, context)?;
        put(device, i32::try_from(known(state, context)?.device).unwrap_or(i32::MAX))
    })
}

fn synchronize(context: CUcontext) -> Answer {
    with(|state| {
        let context = meant(state, context)?;
        state.wait(context, &ContextSynchronize {})
    })
}

fn create(place: *mut CUcontext, flags: u32, device: CUdevice) -> Answer {
    if place.is_null() || flags & !ctx_flags::MASK != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let id = with(|state| {
        let device = state.device(device)?;
        let id = ContextId(state.new_number());
        state.create_context(id, device, flags)?;
        Ok(id)
    })?;
    with_stack(|stack| stack.push(id))?;
    put(place, handle(Kind::Context, id.0))
}

fn destroy(context: CUcontext) -> Answer {
    let id = with(|state| {
        let id = state.context_of(context)?;
        let of_device = state.contexts.get(&id).map(|context| context.device);
        if of_device.is_some_and(|device| id.0 as usize == device + 1) {
            // A primary context is released, not destroyed.
            return Err(CuResult::INVALID_CONTEXT);
        }
        state.destroy_context(id)?;
        Ok(id)
    })?;
    with_stack(|stack| {
        if stack.last() == Some(&id) {
            stack.pop();
        }
    })
}

fn push(context: CUcontext) -> Answer {
    let id = with(|state| state.context_of(context))?;
    with_stack(|stack| stack.push(id))
}

fn pop(place: *mut CUcontext) -> Answer {
    let popped = with_stack(Vec::pop)?.ok_or(CuResult::INVALID_CONTEXT)?;
    put_if_wanted(place, handle(Kind::Context, popped.0));
    Ok(())
}

/// The context that is meant: the current one when none is named.
fn meant(state: &State, context: CUcontext) -> Answer<ContextId> {
    if context.is_null() { state.context() } else { state.context_of(context) }
}

api! {
    fn cuCtxCreate(place: *mut CUcontext, flags: u32, device: CUdevice) {
        create(place, flags, device)
    }

    fn cuCtxCreate_v2(place: *mut CUcontext, flags: u32, device: CUdevice) {
        create(place, flags, device)
    }

    fn cuCtxCreate_v3(
        place: *mut CUcontext, _affinity: *mut c_void, count: i32, flags: u32, device: CUdevice,
    ) {
        if count != 0 {
            return Err(CuResult::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(place, flags, device)
    }

    fn cuCtxCreate_v4(
        place: *mut CUcontext, parameters: *mut [usize; 3], flags: u32, device: CUdevice,
    ) {
        if !parameters.is_null() {
            // SAFETY: the driver API's contract: null or a structure of this size.
            let [affinity, count, graphics] = unsafe { parameters.read_unaligned() };
            // The count has 32 bits; what is behind them is nobody's.
            if affinity != 0 || count & 0xffff_ffff != 0 || graphics != 0 {
                return Err(CuResult::NOT_SUPPORTED);
            }
        }
        create(place, flags, device)
    }

    fn cuCtxDestroy(context: CUcontext) {
        destroy(context)
    }

    fn cuCtxDestroy_v2(context: CUcontext) {
        destroy(context)
    }

    fn cuCtxGetCurrent(place: *mut CUcontext) {
        // Asked thousands of times a second: no lock.
        let context = current()?;
        put(place, context.map_or(std::ptr::null_mut(), |id| handle(Kind::Context, id.0)))
    }

    fn cuCtxSetCurrent(context: CUcontext) {
        let id = if context.is_null() {
            with(|_| Ok(None))?
        } else {
            with(|state| state.context_of(context).map(Some))?
        };
        with_stack(|stack| {
            stack.pop();
            stack.extend(id);
        })
    }

    fn cuCtxPushCurrent(context: CUcontext) {
        push(context)
    }

    fn cuCtxPushCurrent_v2(context: CUcontext) {
        push(context)
    }

    fn cuCtxPopCurrent(place: *mut CUcontext) {
        pop(place)
    }

    fn cuCtxPopCurrent_v2(place: *mut CUcontext) {
        pop(place)
    }

    fn cuCtxGetDevice(device: *mut CUdevice) {
        put_device(std::ptr::null_mut(), device)
    }

    fn cuCtxGetDevice_v2(device: *mut CUdevice, context: CUcontext) {
        put_device(context, device)
    }

    fn cuCtxSetFlags(flags: u32) {
        if flags & !ctx_flags::MASK != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let context = state.context()?;
            known(state, context)?.flags = flags;
            state.wait_as(flags);
            Ok(())
        })
    }

    fn cuCtxAttach(place: *mut CUcontext, flags: u32) {
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| put(place, handle(Kind::Context, state.context()?.0)))
    }

    fn cuCtxDetach(context: CUcontext) {
        // What was attached is the current context, which is destroyed and not detached.
        with(|state| state.context_of(context).map(drop))
    }

    fn cuCtxGetFlags(flags: *mut u32) {
        with(|state| {
            let context = state.context()?;
            let context = state.contexts.get(&context).ok_or(CuResult::INVALID_CONTEXT)?;
            put(flags, context.flags | ctx_flags::MAP_HOST)
        })
    }

    fn cuCtxGetId(context: CUcontext, id: *mut u64) {
        with(|state| put(id, meant(state, context)?.0.into()))
    }

    fn cuCtxGetApiVersion(context: CUcontext, version: *mut u32) {
        with(|state| {
            meant(state, context)?;
            put(version, 3020)
        })
    }

    fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) {
        with(|state| {
            let context = state.context()?;
            let priorities = known(state, context)?.priorities;
            put_if_wanted(least, priorities.0);
            put_if_wanted(greatest, priorities.1);
            Ok(())
        })
    }

    fn cuCtxGetCacheConfig(config: *mut u32) {
        with(|state| {
            let context = state.context()?;
            put(config, known(state, context)?.cache_config)
        })
    }

    fn cuCtxSetCacheConfig(config: u32) {
        // A hint, and the device may do as it likes.
        if config > 3 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let context = state.context()?;
            known(state, context)?.cache_config = config;
            Ok(())
        })
    }

    fn cuCtxGetSharedMemConfig(config: *mut u32) {
        with(|state| {
            let context = state.context()?;
            put(config, known(state, context)?.shared_config)
        })
    }

    fn cuCtxSetSharedMemConfig(config: u32) {
        if config > 2 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let context = state.context()?;
            known(state, context)?.shared_config = config;
            Ok(())
        })
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        with(|state| {
            let context = state.context()?;
            let value = value as u64;
            state.call(context, &ContextSetLimit { limit, value }).map(drop)
        })
    }

    fn cuCtxGetLimit(value: *mut usize, limit: u32) {
        with(|state| {
            let context = state.context()?;
            let reply = state.call(context, &ContextLimit { limit })?;
            put(value, usize::try_from(reply.value).unwrap_or(usize::MAX))
        })
    }

    fn cuCtxSynchronize() {
        synchronize(std::ptr::null_mut())
    }

    fn cuCtxSynchronize_v2(context: CUcontext) {
        synchronize(context)
    }
}
