//! Where a call's work goes: a stream of the current context, or its default stream.

use std::sync::Arc;

use gpuzone_cuda_abi::{CuResult, stream_handle};

use crate::Answer;
use crate::abi::Word;
use crate::context::Context;
use crate::driver::current;
use crate::event::Stream;
use crate::executor::Ticket;
use crate::handles;
use crate::work::Work;

pub(super) struct Lane {
    pub(super) context: Arc<Context>,
    pub(super) stream: Option<Arc<Stream>>,
}

impl Lane {
    /// The lane of a stream handle, which may be one of the three fixed ones.
    pub(super) fn of(handle: Word) -> Answer<Self> {
        let context = current()?;
        if let stream_handle::DEFAULT | stream_handle::LEGACY | stream_handle::PER_THREAD = handle {
            return Ok(Self { context, stream: None });
        }
        let stream = handles::stream(handle)?;
        if !Arc::ptr_eq(stream.context(), &context) {
            return Err(CuResult::INVALID_HANDLE);
        }
        Ok(Self { context, stream: Some(stream) })
    }

    pub(super) fn submit(&self, work: Work) -> Answer<Ticket> {
        let ticket = self.context.submit(work)?;
        if let Some(stream) = &self.stream {
            stream.submitted(ticket);
        }
        Ok(ticket)
    }

    /// Submits and waits.
    pub(super) fn run(&self, work: Work) -> Answer {
        let ticket = self.submit(work)?;
        self.context.wait(ticket)
    }

    /// The last work of the lane; the default stream waits for all others.
    pub(super) fn last(&self) -> Ticket {
        self.stream.as_ref().map_or_else(|| self.context.last(), |stream| stream.last())
    }
}
