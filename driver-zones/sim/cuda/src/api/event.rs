use std::sync::Arc;

use gpuzone_cuda_abi::{CuResult, event_flags};

use super::lane::Lane;
use crate::Answer;
use crate::abi::{Out, Word, entry_points};
use crate::driver::{current, driver};
use crate::event::Event;
use crate::handles::{self, Object};
use crate::work::Work;

const KNOWN_FLAGS: u32 = event_flags::BLOCKING_SYNC | event_flags::DISABLE_TIMING;

fn record(event: Word, stream: Word, flags: u32) -> Answer {
    if flags > 1 {
        return Err(CuResult::INVALID_VALUE);
    }
    let lane = Lane::of(stream)?;
    let event = handles::event(event)?;
    if !Arc::ptr_eq(event.context(), &lane.context) {
        return Err(CuResult::INVALID_HANDLE);
    }
    let number = event.record();
    let work = Work::Record { event: Arc::clone(&event), number };
    lane.submit(work).map(drop).inspect_err(|_| event.reach(number))
}

fn destroy(event: Word) -> Answer {
    driver()?;
    handles::event(event)?;
    handles::remove(event);
    Ok(())
}

fn elapsed(out: Out<f32>, start: Word, end: Word) -> Answer {
    out.check()?;
    let (start, end) = (handles::event(start)?, handles::event(end)?);
    start.context().check()?;
    out.put(end.elapsed_since(&start)?)
}

entry_points! {
    fn cuEventCreate(event: Out<Word>, flags: u32) {
        event.check()?;
        if flags & event_flags::INTERPROCESS != 0 {
            return Err(CuResult::NOT_SUPPORTED);
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let made = Arc::new(Event::new(current()?, flags));
        event.put(handles::insert(|_| Object::Event(made)))
    }

    fn cuEventRecord(event: Word, stream: Word) { record(event, stream, 0) }

    fn cuEventRecordWithFlags(event: Word, stream: Word, flags: u32) {
        record(event, stream, flags)
    }

    fn cuEventQuery(event: Word) {
        driver()?;
        let event = handles::event(event)?;
        let reached = event.is_reached();
        event.context().check()?;
        if reached { Ok(()) } else { Err(CuResult::NOT_READY) }
    }

    fn cuEventSynchronize(event: Word) {
        driver()?;
        let event = handles::event(event)?;
        event.wait(event.newest());
        event.context().write_prints();
        event.context().check()
    }

    fn cuEventDestroy(event: Word) { destroy(event) }
    fn cuEventDestroy_v2(event: Word) { destroy(event) }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Word, end: Word) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Word, end: Word) {
        elapsed(milliseconds, start, end)
    }
}
