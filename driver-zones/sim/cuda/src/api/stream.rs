use std::sync::Arc;

use gpuzone_cuda_abi::{CuResult, stream_flags};

use super::lane::Lane;
use crate::Answer;
use crate::abi::{HostFunction, Out, Word, entry_points};
use crate::driver::{current, driver};
use crate::event::Stream;
use crate::handles::{self, Object};
use crate::work::Work;

/// The greatest priority; the least is 0.
const GREATEST_PRIORITY: i32 = -5;

fn create(out: Out<Word>, flags: u32, priority: i32) -> Answer {
    out.check()?;
    if flags & !stream_flags::NON_BLOCKING != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let priority = priority.clamp(GREATEST_PRIORITY, 0);
    let stream = Arc::new(Stream::new(current()?, flags, priority));
    out.put(handles::insert(|_| Object::Stream(stream)))
}

/// What was submitted to it is done anyway.
fn destroy(handle: Word) -> Answer {
    driver()?;
    handles::stream(handle)?;
    handles::remove(handle);
    Ok(())
}

/// A callback of `cuStreamAddCallback`.
struct OfStream {
    function: extern "C" fn(Word, CuResult, *mut std::ffi::c_void),
    stream: Word,
    data: Word,
}

extern "C" fn call_of_stream(data: *mut std::ffi::c_void) {
    // SAFETY: the box that was made for this one call.
    let of_stream = unsafe { Box::from_raw(data.cast::<OfStream>()) };
    let data = std::ptr::with_exposed_provenance_mut(of_stream.data);
    (of_stream.function)(of_stream.stream, CuResult::SUCCESS, data);
}

entry_points! {
    fn cuStreamCreate(stream: Out<Word>, flags: u32) { create(stream, flags, 0) }

    fn cuStreamCreateWithPriority(stream: Out<Word>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }

    fn cuStreamDestroy(stream: Word) { destroy(stream) }
    fn cuStreamDestroy_v2(stream: Word) { destroy(stream) }

    fn cuStreamSynchronize(stream: Word) {
        let lane = Lane::of(stream)?;
        lane.context.wait(lane.last())
    }

    fn cuStreamQuery(stream: Word) {
        let lane = Lane::of(stream)?;
        lane.context.query(lane.last())
    }

    fn cuStreamWaitEvent(stream: Word, event: Word, _flags: u32) {
        let lane = Lane::of(stream)?;
        let event = handles::event(event)?;
        let number = event.newest();
        if number == 0 {
            // Never recorded.
            return Ok(());
        }
        if Arc::ptr_eq(event.context(), &lane.context) {
            // Its work comes before whatever is submitted now; whoever waits for the stream waits
            // for it as well.
            if let Some(stream) = &lane.stream {
                stream.submitted(lane.context.last());
            }
            return Ok(());
        }
        lane.submit(Work::WaitFor { event, number }).map(drop)
    }

    fn cuStreamGetCtx(stream: Word, context: Out<Word>) {
        context.put(Lane::of(stream)?.context.handle)
    }

    fn cuStreamGetDevice(stream: Word, device: Out<i32>) {
        device.put(Lane::of(stream)?.context.gpu().ordinal)
    }

    fn cuStreamGetId(stream: Word, id: Out<u64>) {
        Lane::of(stream)?;
        id.put(u64::try_from(stream).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuStreamGetFlags(stream: Word, flags: Out<u32>) {
        flags.put(Lane::of(stream)?.stream.map_or(stream_flags::DEFAULT, |stream| stream.flags))
    }

    fn cuStreamGetPriority(stream: Word, priority: Out<i32>) {
        priority.put(Lane::of(stream)?.stream.map_or(0, |stream| stream.priority))
    }

    fn cuStreamIsCapturing(stream: Word, status: Out<u32>) {
        Lane::of(stream)?;
        status.put(0)
    }

    fn cuLaunchHostFunc(
        stream: Word,
        function: Option<extern "C" fn(*mut std::ffi::c_void)>,
        data: Word,
    ) {
        let function = function.ok_or(CuResult::INVALID_VALUE)?;
        Lane::of(stream)?.submit(Work::Call(HostFunction { function, data })).map(drop)
    }

    fn cuStreamAddCallback(
        stream: Word,
        function: Option<extern "C" fn(Word, CuResult, *mut std::ffi::c_void)>,
        data: Word,
        flags: u32,
    ) {
        let function = function.ok_or(CuResult::INVALID_VALUE)?;
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let of_stream = OfStream { function, stream, data };
        let data = Box::into_raw(Box::new(of_stream)).expose_provenance();
        let call = HostFunction { function: call_of_stream, data };
        Lane::of(stream)?.submit(Work::Call(call)).map(drop)
    }
}
