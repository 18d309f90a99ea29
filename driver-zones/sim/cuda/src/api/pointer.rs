//! What an address is.

use std::sync::Arc;

use gpuzone_cuda_abi::{CuResult, INVALID_DEVICE, PointerAttribute as P, memory_type};

use crate::Answer;
use crate::abi::{Array, HostBytes, Word, entry_points};
use crate::context::Context;
use crate::driver::driver;
use crate::handles;
use crate::host_memory::{self, Pinned};
use crate::memory::Kind;

enum Found {
    Device { context: Arc<Context>, base: u64, bytes: u64 },
    Host(Pinned),
}

fn find(address: u64) -> Option<Found> {
    for context in handles::contexts() {
        if let Some((base, allocation)) = context.memory().find(address)
            && allocation.kind != Kind::Context
        {
            return Some(Found::Device { context, base, bytes: allocation.bytes });
        }
    }
    host_memory::find(Word::try_from(address).ok()?).map(Found::Host)
}

/// The bytes of the attribute, which is 4 or 8 of them.
fn value(found: &Found, which: P, address: u64) -> Answer<Vec<u8>> {
    let word = |value: u32| Ok(value.to_ne_bytes().to_vec());
    let wide = |value: u64| Ok(value.to_ne_bytes().to_vec());
    let handle = |value: Word| Ok(value.to_ne_bytes().to_vec());
    match (found, which) {
        (Found::Device { context, .. }, P::CONTEXT) => handle(context.handle),
        (Found::Host(pinned), P::CONTEXT) => handle(pinned.context),
        (Found::Device { .. }, P::MEMORY_TYPE) => word(memory_type::DEVICE),
        (Found::Host(_), P::MEMORY_TYPE) => word(memory_type::HOST),
        (Found::Device { .. }, P::DEVICE_POINTER)
        | (Found::Host(_), P::DEVICE_POINTER | P::HOST_POINTER) => wide(address),
        (Found::Device { context, .. }, P::DEVICE_ORDINAL) => {
            Ok(context.gpu().ordinal.to_ne_bytes().to_vec())
        }
        (Found::Host(pinned), P::DEVICE_ORDINAL) => {
            let ordinal = handles::context(pinned.context)?.gpu().ordinal;
            Ok(ordinal.to_ne_bytes().to_vec())
        }
        (Found::Device { base, .. }, P::RANGE_START_ADDR | P::BUFFER_ID) => wide(*base),
        (Found::Device { bytes, .. }, P::RANGE_SIZE) => wide(*bytes),
        (Found::Host(pinned), P::RANGE_START_ADDR | P::BUFFER_ID) => handle(pinned.address),
        (Found::Host(pinned), P::RANGE_SIZE) => handle(pinned.len),
        (_, P::MAPPED) => word(1),
        (_, P::IS_MANAGED | P::SYNC_MEMOPS | P::IS_LEGACY_CUDA_IPC_CAPABLE) => word(0),
        (_, P::IS_GPU_DIRECT_RDMA_CAPABLE | P::ALLOWED_HANDLE_TYPES) => word(0),
        _ => Err(CuResult::INVALID_VALUE),
    }
}

/// What `cuPointerGetAttributes` writes for what is not known to be anything.
fn nothing(which: P) -> Vec<u8> {
    let bytes = match which {
        P::CONTEXT
        | P::DEVICE_POINTER
        | P::HOST_POINTER
        | P::BUFFER_ID
        | P::RANGE_START_ADDR
        | P::RANGE_SIZE
        | P::MEMPOOL_HANDLE => 8,
        P::DEVICE_ORDINAL => return INVALID_DEVICE.to_ne_bytes().to_vec(),
        _ => 4,
    };
    vec![0; bytes]
}

entry_points! {
    fn cuPointerGetAttribute(data: Word, attribute: u32, address: u64) {
        driver()?;
        let found = find(address).ok_or(CuResult::INVALID_VALUE)?;
        let bytes = value(&found, P(attribute), address)?;
        HostBytes::new(data, bytes.len())?.write(&bytes);
        Ok(())
    }

    fn cuPointerGetAttributes(count: u32, attributes: Array<u32>, data: Array<Word>, address: u64) {
        driver()?;
        let found = find(address);
        for index in 0..usize::try_from(count).map_err(|_| CuResult::INVALID_VALUE)? {
            let which = P(attributes.get(index)?);
            which.name().ok_or(CuResult::INVALID_VALUE)?;
            let bytes = found.as_ref().and_then(|found| value(found, which, address).ok());
            let bytes = bytes.unwrap_or_else(|| nothing(which));
            HostBytes::new(data.get(index)?, bytes.len())?.write(&bytes);
        }
        Ok(())
    }
}
