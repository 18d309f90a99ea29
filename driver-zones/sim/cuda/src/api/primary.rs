//! Primary contexts: one per GPU and process, counted by those who retain it.

use std::sync::{MutexGuard, PoisonError};

use gpuzone_cuda_abi::{CuResult, ctx_flags};

use crate::Answer;
use crate::abi::{Out, Word, entry_points};
use crate::context::Context;
use crate::driver::{Primary, gpu};

fn primary(device: i32) -> Answer<MutexGuard<'static, Primary>> {
    Ok(gpu(device)?.primary.lock().unwrap_or_else(PoisonError::into_inner))
}

fn end(primary: &mut Primary) {
    if let Some(context) = primary.context.take() {
        context.destroy();
    }
    primary.retained = 0;
}

fn release(device: i32) -> Answer {
    let mut primary = primary(device)?;
    match primary.retained {
        0 => Err(CuResult::INVALID_CONTEXT),
        1 => {
            end(&mut primary);
            Ok(())
        }
        _ => {
            primary.retained -= 1;
            Ok(())
        }
    }
}

fn reset(device: i32) -> Answer {
    end(&mut *primary(device)?);
    Ok(())
}

fn set_flags(device: i32, flags: u32) -> Answer {
    if flags & !ctx_flags::MASK != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let mut primary = primary(device)?;
    primary.flags = flags;
    if let Some(context) = &primary.context {
        context.flags.store(flags, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(())
}

entry_points! {
    fn cuDevicePrimaryCtxRetain(context: Out<Word>, device: i32) {
        context.check()?;
        let gpu = gpu(device)?;
        let mut primary = primary(device)?;
        let handle = match &primary.context {
            Some(existing) => existing.handle,
            None => {
                let made = Context::create(gpu, primary.flags)?;
                primary.context.insert(made).handle
            }
        };
        primary.retained = primary.retained.checked_add(1).ok_or(CuResult::INVALID_VALUE)?;
        context.put(handle)
    }

    fn cuDevicePrimaryCtxRelease(device: i32) { release(device) }
    fn cuDevicePrimaryCtxRelease_v2(device: i32) { release(device) }
    fn cuDevicePrimaryCtxReset(device: i32) { reset(device) }
    fn cuDevicePrimaryCtxReset_v2(device: i32) { reset(device) }
    fn cuDevicePrimaryCtxSetFlags(device: i32, flags: u32) { set_flags(device, flags) }
    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) { set_flags(device, flags) }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let primary = primary(device)?;
        flags.put(primary.flags)?;
        active.put(i32::from(primary.context.is_some()))
    }
}
