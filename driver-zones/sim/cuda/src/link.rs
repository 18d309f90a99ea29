//! The linker: what it makes of one PTX is a fat binary of it, since there is no machine code.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::image::{Packing, fat_binary_of_ptx};
use gpuzone_cuda_abi::{CuResult, link_input};
use gpuzone_sim_ptx::Module as Code;

use crate::context::Context;
use crate::image::ptx_of;
use crate::module::{Refusal, refuse};

pub(crate) struct Link {
    context: Arc<Context>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    text: Option<String>,
    /// What was made; lives as long as the linker does.
    image: Option<Box<[u8]>>,
}

impl Link {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context, state: Mutex::default() }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, kind: u32, data: &[u8]) -> Result<(), Refusal> {
        if !matches!(kind, link_input::PTX | link_input::FATBINARY) {
            let log = "the simulated GPU links PTX only";
            return Err(refuse(CuResult::NO_BINARY_FOR_GPU, log));
        }
        let device = self.context.gpu().config().compute_capability;
        let text = ptx_of(data, device.major * 10 + device.minor)?.into_owned();
        Code::parse(&text).map_err(|error| {
            refuse(CuResult::INVALID_PTX, format!("line {}: {}", error.line, error.message))
        })?;
        let mut state = self.state();
        if state.text.is_some() {
            let log = "the simulated GPU's linker takes one PTX only";
            return Err(refuse(CuResult::NOT_SUPPORTED, log));
        }
        state.text = Some(text);
        Ok(())
    }

    /// Where what was made lies, and how long it is.
    pub(crate) fn complete(&self) -> Result<(*const u8, usize), Refusal> {
        let mut state = self.state();
        let text = state.text.take();
        let text = text.ok_or_else(|| refuse(CuResult::INVALID_VALUE, "nothing was added"))?;
        let mut bytes = text.into_bytes();
        bytes.push(0);
        let length = bytes.len() as u64;
        let image = fat_binary_of_ptx(&bytes, Packing::Plain, length).into_boxed_slice();
        let image = state.image.insert(image);
        Ok((image.as_ptr(), image.len()))
    }
}
