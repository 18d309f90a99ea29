use std::sync::atomic::Ordering;

use gpuzone_cuda_abi::{CuResult, Limit, ctx_flags};

use crate::Answer;
use crate::abi::{Out, Word, entry_points};
use crate::context::Context;
use crate::driver::{current, current_unchecked, driver, gpu, with_stack};
use crate::handles;

fn create(out: Out<Word>, flags: u32, device: i32) -> Answer {
    out.check()?;
    if flags & !ctx_flags::MASK != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let context = Context::create(gpu(device)?, flags)?;
    with_stack(|stack| stack.push(context.handle));
    out.put(context.handle)
}

fn destroy(handle: Word) -> Answer {
    driver()?;
    let context = handles::context(handle)?;
    let primary = context.gpu().primary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if primary.context.as_ref().is_some_and(|primary| primary.handle == handle) {
        // Only releasing it ends a primary context.
        return Err(CuResult::INVALID_CONTEXT);
    }
    drop(primary);
    context.destroy();
    with_stack(|stack| {
        if stack.last() == Some(&handle) {
            stack.pop();
        }
    });
    Ok(())
}

fn push(handle: Word) -> Answer {
    driver()?;
    handles::context(handle)?;
    with_stack(|stack| stack.push(handle));
    Ok(())
}

fn pop(out: Out<Word>) -> Answer {
    driver()?;
    let handle = with_stack(Vec::pop).ok_or(CuResult::INVALID_CONTEXT)?;
    out.put_if_wanted(handle);
    Ok(())
}

entry_points! {
    fn cuCtxCreate_v2(context: Out<Word>, flags: u32, device: i32) {
        create(context, flags, device)
    }

    /// Execution affinity would limit the multiprocessors, which the simulated GPU cannot.
    fn cuCtxCreate_v3(context: Out<Word>, _affinity: Word, count: i32, flags: u32, device: i32) {
        if count != 0 {
            return Err(CuResult::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(context, flags, device)
    }

    fn cuCtxCreate_v4(context: Out<Word>, parameters: Word, flags: u32, device: i32) {
        if parameters != 0 {
            return Err(CuResult::NOT_SUPPORTED);
        }
        create(context, flags, device)
    }

    fn cuCtxDestroy(context: Word) { destroy(context) }
    fn cuCtxDestroy_v2(context: Word) { destroy(context) }
    fn cuCtxPushCurrent(context: Word) { push(context) }
    fn cuCtxPushCurrent_v2(context: Word) { push(context) }
    fn cuCtxPopCurrent(context: Out<Word>) { pop(context) }
    fn cuCtxPopCurrent_v2(context: Out<Word>) { pop(context) }

    fn cuCtxGetCurrent(context: Out<Word>) {
        driver()?;
        context.put(with_stack(|stack| stack.last().copied()).unwrap_or(0))
    }

    fn cuCtxSetCurrent(context: Word) {
        driver()?;
        if context != 0 {
            handles::context(context)?;
        }
        with_stack(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) {
        device.put(current_unchecked()?.gpu().ordinal)
    }

    fn cuCtxGetId(context: Word, id: Out<u64>) {
        driver()?;
        let context = if context == 0 { current_unchecked()? } else { handles::context(context)? };
        id.put(u64::try_from(context.handle).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuCtxGetApiVersion(context: Word, version: Out<u32>) {
        driver()?;
        if context == 0 {
            current_unchecked()?;
        } else {
            handles::context(context)?;
        }
        // The version of the context interface, which stayed at that of CUDA 3.2.
        version.put(3020)
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        flags.put(current_unchecked()?.flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: u32) {
        if flags & !ctx_flags::MASK != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxSynchronize() {
        let context = current()?;
        context.wait(context.last())
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        value.put(current()?.limit(Limit(limit))?)
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        current()?.set_limit(Limit(limit), value)
    }

    fn cuCtxGetCacheConfig(config: Out<u32>) {
        config.put(current()?.cache_config.load(Ordering::Relaxed))
    }

    fn cuCtxSetCacheConfig(config: u32) {
        if config > 3 {
            return Err(CuResult::INVALID_VALUE);
        }
        current()?.cache_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current()?;
        least.put_if_wanted(0);
        greatest.put_if_wanted(-5);
        Ok(())
    }

    fn cuCtxEnablePeerAccess(_peer: Word, _flags: u32) {
        current()?;
        Err(CuResult::PEER_ACCESS_UNSUPPORTED)
    }
}
