use gpuzone_cuda_abi::{CUcontext, CUdevice, CUevent, CUstream, CuResult, stream_flags};
use gpuzone_wire::spec::{
    StreamCreate, StreamDestroy, StreamId, StreamQuery, StreamSynchronize, StreamWaitEvent,
};

use crate::ffi::{Answer, api, put};
use crate::handles::{Kind, handle, number};
use crate::state::with;
use crate::tables::Stream;

fn create(place: *mut CUstream, flags: u32) -> Answer {
    if place.is_null() || flags & !stream_flags::NON_BLOCKING != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let context = state.context()?;
        let stream = StreamId(state.new_number());
        state.post(context, &StreamCreate { stream, flags })?;
        state.streams.insert(stream, Stream { context, flags });
        put(place, handle(Kind::Stream, stream.0))
    })
}

api! {
    fn cuStreamCreate(place: *mut CUstream, flags: u32) {
        create(place, flags)
    }

    fn cuStreamCreateWithPriority(place: *mut CUstream, flags: u32, _priority: i32) {
        // There are no priorities: any number means the same, as on a GPU that has none.
        create(place, flags)
    }

    fn cuStreamDestroy_v2(stream: CUstream) {
        with(|state| {
            let id = number(Kind::Stream, stream).map(StreamId).ok_or(CuResult::INVALID_HANDLE)?;
            let (id, context) = state.streams.get(&id).map(|stream| (id, stream.context))
                .ok_or(CuResult::INVALID_HANDLE)?;
            state.streams.remove(&id);
            state.post_release(context, &StreamDestroy { stream: id })
        })
    }

    fn cuStreamSynchronize(stream: CUstream) {
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            state.call(context, &StreamSynchronize { stream }).map(|_| ())
        })
    }

    fn cuStreamQuery(stream: CUstream) {
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            state.call(context, &StreamQuery { stream }).map(|_| ())
        })
    }

    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: u32) {
        if flags > 1 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            let (event, _) = state.event(event)?;
            state.post(context, &StreamWaitEvent { stream, event })
        })
    }

    fn cuStreamGetFlags(stream: CUstream, flags: *mut u32) {
        with(|state| {
            let (id, _) = state.stream(stream)?;
            put(flags, state.streams.get(&id).map_or(0, |stream| stream.flags))
        })
    }

    fn cuStreamGetPriority(stream: CUstream, priority: *mut i32) {
        with(|state| {
            state.stream(stream)?;
            put(priority, 0)
        })
    }

    fn cuStreamGetCtx(stream: CUstream, context: *mut CUcontext) {
        with(|state| {
            let (_, of) = state.stream(stream)?;
            put(context, handle(Kind::Context, of.0))
        })
    }

    fn cuStreamGetId(stream: CUstream, id: *mut u64) {
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            // The default stream of each context is another one.
            put(id, (u64::from(context.0) << 32) | u64::from(stream.0))
        })
    }

    fn cuStreamGetDevice(stream: CUstream, device: *mut CUdevice) {
        with(|state| {
            let (_, of) = state.stream(stream)?;
            let context = state.contexts.get(&of).ok_or(CuResult::INVALID_CONTEXT)?;
            put(device, i32::try_from(context.device).unwrap_or(i32::MAX))
        })
    }

    fn cuStreamIsCapturing(stream: CUstream, status: *mut u32) {
        with(|state| {
            state.stream(stream)?;
            put(status, 0)
        })
    }
}
