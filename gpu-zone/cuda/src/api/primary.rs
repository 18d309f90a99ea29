use gpuzone_cuda_abi::{CUcontext, CUdevice, CuResult, ctx_flags};
use gpuzone_wire::spec::ContextId;

use crate::ffi::{Answer, api, put};
use crate::handles::{Kind, handle};
use crate::state::{State, with};

/// A GPU's primary context always has the same number, so that a handle stays good when the
/// context is retained again.
fn primary(device: usize) -> ContextId {
    ContextId(u32::try_from(device + 1).unwrap_or(u32::MAX))
}

fn retain(state: &mut State, device: usize) -> Answer<ContextId> {
    let id = primary(device);
    let held = state.primaries.get(device).ok_or(CuResult::INVALID_DEVICE)?;
    let flags = held.flags;
    if held.holders == 0 {
        state.create_context(id, device, flags)?;
    }
    if let Some(held) = state.primaries.get_mut(device) {
        held.holders += 1;
    }
    Ok(id)
}

fn release(device: CUdevice) -> Answer {
    with(|state| {
        let device = state.device(device)?;
        let held = state.primaries.get_mut(device).ok_or(CuResult::INVALID_DEVICE)?;
        held.holders = held.holders.checked_sub(1).ok_or(CuResult::INVALID_CONTEXT)?;
        if held.holders == 0 { state.destroy_context(primary(device)) } else { Ok(()) }
    })
}

fn reset(device: CUdevice) -> Answer {
    with(|state| {
        let device = state.device(device)?;
        let held = state.primaries.get_mut(device).ok_or(CuResult::INVALID_DEVICE)?;
        if std::mem::take(&mut held.holders) == 0 {
            return Ok(());
        }
        state.destroy_context(primary(device))
    })
}

fn set_flags(device: CUdevice, flags: u32) -> Answer {
    if flags & !ctx_flags::MASK != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let device = state.device(device)?;
        let held = state.primaries.get_mut(device).ok_or(CuResult::INVALID_DEVICE)?;
        held.flags = flags;
        if let Some(context) = state.contexts.get_mut(&primary(device)) {
            context.flags = flags;
            state.wait_as(flags);
        }
        Ok(())
    })
}

api! {
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) {
        if context.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let device = state.device(device)?;
            let id = retain(state, device)?;
            put(context, handle(Kind::Context, id.0))
        })
    }

    fn cuDevicePrimaryCtxRelease(device: CUdevice) {
        release(device)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) {
        release(device)
    }

    fn cuDevicePrimaryCtxReset(device: CUdevice) {
        reset(device)
    }

    fn cuDevicePrimaryCtxReset_v2(device: CUdevice) {
        reset(device)
    }

    fn cuDevicePrimaryCtxSetFlags(device: CUdevice, flags: u32) {
        set_flags(device, flags)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: u32) {
        set_flags(device, flags)
    }

    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut u32, active: *mut i32) {
        with(|state| {
            let device = state.device(device)?;
            let held = state.primaries.get(device).ok_or(CuResult::INVALID_DEVICE)?;
            put(flags, held.flags)?;
            put(active, i32::from(held.holders > 0))
        })
    }
}
