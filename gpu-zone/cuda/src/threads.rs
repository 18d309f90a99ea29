//! Threads' own default streams: each is a stream of the thread's, made when it is first used.

use std::cell::{Cell, RefCell};

use gpuzone_wire::spec::{ContextId, StreamDestroy, StreamId};

use crate::ffi::Answer;
use crate::state::with;
use crate::tables::HashMap;

/// The streams of one thread, by context; they end with it.
#[derive(Default)]
struct Own(HashMap<ContextId, StreamId>);

impl Drop for Own {
    fn drop(&mut self) {
        for (context, stream) in self.0.drain() {
            // A context that is gone has taken its streams along.
            let _ = with(|state| {
                if state.contexts.contains_key(&context) && state.streams.remove(&stream).is_some()
                {
                    state.post_release(context, &StreamDestroy { stream })?;
                }
                Ok(())
            });
        }
    }
}

thread_local! {
    static IS_DEFAULT: Cell<bool> = const { Cell::new(false) };
    static OWN: RefCell<Own> = RefCell::default();
}

/// Does a call whose default stream is the thread's own.
pub(crate) fn with_own_stream<T>(call: impl FnOnce() -> T) -> T {
    let before = IS_DEFAULT.replace(true);
    let answer = call();
    IS_DEFAULT.set(before);
    answer
}

/// Whether the default stream is the thread's own in this call.
pub(crate) fn is_own_default() -> bool {
    IS_DEFAULT.get()
}

/// The thread's stream in a context, if it has one that `is_there`.
pub(crate) fn own_stream(
    context: ContextId,
    is_there: impl Fn(StreamId) -> bool,
) -> Option<StreamId> {
    let known = OWN.try_with(|own| own.borrow().0.get(&context).copied()).ok()??;
    is_there(known).then_some(known)
}

/// Remembers it.
pub(crate) fn set_own_stream(context: ContextId, stream: StreamId) -> Answer {
    OWN.try_with(|own| own.borrow_mut().0.insert(context, stream))
        .map(drop)
        .map_err(|_| gpuzone_cuda_abi::CuResult::INVALID_CONTEXT)
}
