use gpuzone_cuda_abi::{
    CUcontext, CUdevice, CUevent, CUstream, CuResult, LaunchAttribute, stream_flags,
};
use gpuzone_wire::spec::{
    StreamCreate, StreamDestroy, StreamId, StreamQuery, StreamSynchronize, StreamWaitEvent,
};

use crate::ffi::{Answer, api, put, put_if_wanted};
use crate::handles::{Kind, handle, number};
use crate::state::with;
use crate::tables::Stream;

fn create(place: *mut CUstream, flags: u32, priority: i32) -> Answer {
    if place.is_null() || flags & !stream_flags::NON_BLOCKING != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let context = state.context()?;
        let known = state.contexts.get(&context).ok_or(CuResult::INVALID_CONTEXT)?;
        let (least, greatest) = known.priorities;
        // A number out of the range is its nearest end; the greatest priority is the least number.
        let priority = priority.min(least).max(greatest);
        let stream = StreamId(state.new_number());
        state.post(context, &StreamCreate { stream, flags, priority })?;
        state.streams.insert(stream, Stream { context, flags, priority });
        put(place, handle(Kind::Stream, stream.0))
    })
}

pub(super) fn wait_event(stream: CUstream, event: CUevent) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        let (event, _) = state.event(event)?;
        if state.graphs.join(stream, event, context)? {
            return Ok(());
        }
        state.post(context, &StreamWaitEvent { stream, event })
    })
}

fn destroy(stream: CUstream) -> Answer {
    with(|state| {
        let id = number(Kind::Stream, stream).map(StreamId).ok_or(CuResult::INVALID_HANDLE)?;
        let (id, context) = state
            .streams
            .get(&id)
            .map(|stream| (id, stream.context))
            .ok_or(CuResult::INVALID_HANDLE)?;
        state.streams.remove(&id);
        state.post_release(context, &StreamDestroy { stream: id })
    })
}

api! {
    fn cuStreamCreate(place: *mut CUstream, flags: u32) {
        create(place, flags, 0)
    }

    fn cuStreamCreateWithPriority(place: *mut CUstream, flags: u32, priority: i32) {
        create(place, flags, priority)
    }

    fn cuStreamDestroy(stream: CUstream) {
        destroy(stream)
    }

    fn cuStreamDestroy_v2(stream: CUstream) {
        destroy(stream)
    }

    fn cuStreamSynchronize | cuStreamSynchronize_ptsz(stream: CUstream) {
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            state.not_capturing(stream)?;
            state.wait(context, &StreamSynchronize { stream })
        })
    }

    fn cuStreamQuery | cuStreamQuery_ptsz(stream: CUstream) {
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            state.not_capturing(stream)?;
            state.call(context, &StreamQuery { stream }).map(|_| ())
        })
    }

    fn cuStreamWaitEvent | cuStreamWaitEvent_ptsz(stream: CUstream, event: CUevent, flags: u32) {
        if flags > 1 {
            return Err(CuResult::INVALID_VALUE);
        }
        wait_event(stream, event)
    }

    fn cuStreamGetFlags | cuStreamGetFlags_ptsz(stream: CUstream, flags: *mut u32) {
        with(|state| {
            let (id, _) = state.stream(stream)?;
            put(flags, state.streams.get(&id).map_or(0, |stream| stream.flags))
        })
    }

    fn cuStreamGetPriority | cuStreamGetPriority_ptsz(stream: CUstream, priority: *mut i32) {
        with(|state| {
            let (id, _) = state.stream(stream)?;
            put(priority, state.streams.get(&id).map_or(0, |stream| stream.priority))
        })
    }

    fn cuStreamGetCtx | cuStreamGetCtx_ptsz(stream: CUstream, context: *mut CUcontext) {
        with(|state| {
            let (_, of) = state.stream(stream)?;
            put(context, handle(Kind::Context, of.0))
        })
    }

    fn cuStreamGetId | cuStreamGetId_ptsz(stream: CUstream, id: *mut u64) {
        with(|state| {
            let (stream, context) = state.stream(stream)?;
            // The default stream of each context is another one.
            put(id, (u64::from(context.0) << 32) | u64::from(stream.0))
        })
    }

    fn cuStreamGetDevice | cuStreamGetDevice_ptsz(stream: CUstream, device: *mut CUdevice) {
        with(|state| {
            let (_, of) = state.stream(stream)?;
            let context = state.contexts.get(&of).ok_or(CuResult::INVALID_CONTEXT)?;
            put(device, i32::try_from(context.device).unwrap_or(i32::MAX))
        })
    }

    fn cuStreamGetCtx_v2 | cuStreamGetCtx_v2_ptsz(
        stream: CUstream, context: *mut CUcontext, green: *mut *mut std::ffi::c_void,
    ) {
        with(|state| {
            let (_, of) = state.stream(stream)?;
            put_if_wanted(green, std::ptr::null_mut());
            put(context, handle(Kind::Context, of.0))
        })
    }

    fn cuStreamGetAttribute | cuStreamGetAttribute_ptsz(
        stream: CUstream, attribute: u32, value: *mut [u64; 8],
    ) {
        with(|state| {
            let (id, _) = state.stream(stream)?;
            let priority = state.streams.get(&id).map_or(0, |stream| stream.priority);
            match LaunchAttribute(attribute) {
                // Waiting is this library's own, and always done the same way.
                LaunchAttribute::SYNCHRONIZATION_POLICY => put(value.cast::<u32>(), 1),
                LaunchAttribute::PRIORITY => put(value.cast::<i32>(), priority),
                _ => Err(CuResult::NOT_SUPPORTED),
            }
        })
    }

    fn cuStreamSetAttribute | cuStreamSetAttribute_ptsz(
        stream: CUstream, attribute: u32, _value: *const [u64; 8],
    ) {
        with(|state| state.stream(stream).map(drop))?;
        // How to wait, and what to keep in caches: hints.
        match LaunchAttribute(attribute) {
            LaunchAttribute::ACCESS_POLICY_WINDOW | LaunchAttribute::SYNCHRONIZATION_POLICY => Ok(()),
            _ => Err(CuResult::NOT_SUPPORTED),
        }
    }

    fn cuStreamCopyAttributes | cuStreamCopyAttributes_ptsz(target: CUstream, source: CUstream) {
        // What can be set is a hint.
        with(|state| state.stream(target).and_then(|_| state.stream(source)).map(drop))
    }
}
