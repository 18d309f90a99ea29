use gpuzone_cuda_abi::{CUevent, CUstream, CuResult, event_flags};
use gpuzone_wire::spec::{
    EventCreate, EventDestroy, EventElapsed, EventId, EventQuery, EventRecord, EventSynchronize,
};

use crate::ffi::{Answer, api, put};
use crate::handles::{Kind, handle};
use crate::state::with;

pub(super) fn record(event: CUevent, stream: CUstream) -> Answer {
    with(|state| {
        let (event, of) = state.event(event)?;
        let (stream, context) = state.stream(stream)?;
        if of != context {
            return Err(CuResult::INVALID_HANDLE);
        }
        if state.graphs.note_event(event, stream) {
            return Ok(());
        }
        state.post(context, &EventRecord { event, stream })
    })
}

fn elapsed(milliseconds: *mut f32, start: CUevent, end: CUevent) -> Answer {
    with(|state| {
        let (start, context) = state.event(start)?;
        let (end, _) = state.event(end)?;
        put(milliseconds, state.call(context, &EventElapsed { start, end })?.milliseconds)
    })
}

fn destroy(event: CUevent) -> Answer {
    with(|state| {
        let (event, context) = state.event(event)?;
        state.events.remove(&event);
        state.post_release(context, &EventDestroy { event })
    })
}

api! {
    fn cuEventCreate(place: *mut CUevent, flags: u32) {
        let known = event_flags::BLOCKING_SYNC | event_flags::DISABLE_TIMING;
        if place.is_null() || flags & !(known | event_flags::INTERPROCESS) != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        if flags & event_flags::INTERPROCESS != 0 {
            return Err(CuResult::NOT_SUPPORTED);
        }
        with(|state| {
            let context = state.context()?;
            let event = EventId(state.new_number());
            state.post(context, &EventCreate { event, flags })?;
            state.events.insert(event, context);
            put(place, handle(Kind::Event, event.0))
        })
    }

    fn cuEventDestroy(event: CUevent) {
        destroy(event)
    }

    fn cuEventDestroy_v2(event: CUevent) {
        destroy(event)
    }

    fn cuEventRecord | cuEventRecord_ptsz(event: CUevent, stream: CUstream) {
        record(event, stream)
    }

    fn cuEventRecordWithFlags | cuEventRecordWithFlags_ptsz(event: CUevent, stream: CUstream, flags: u32) {
        // External events belong to graphs.
        if flags == 0 { record(event, stream) } else { Err(CuResult::NOT_SUPPORTED) }
    }

    fn cuEventSynchronize(event: CUevent) {
        with(|state| {
            let (event, context) = state.event(event)?;
            state.wait(context, &EventSynchronize { event })
        })
    }

    fn cuEventQuery(event: CUevent) {
        with(|state| {
            let (event, context) = state.event(event)?;
            state.call(context, &EventQuery { event }).map(|_| ())
        })
    }

    fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: CUevent, end: CUevent) {
        elapsed(milliseconds, start, end)
    }
}
