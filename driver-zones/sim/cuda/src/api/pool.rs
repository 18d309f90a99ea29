//! Stream-ordered allocation, and its pools.

use std::sync::{Arc, PoisonError};

use gpuzone_cuda_abi::{CuResult, pool_attribute};

use super::lane::Lane;
use crate::Answer;
use crate::abi::{Array, HostBytes, Out, Word, entry_points};
use crate::driver::{Gpu, driver, gpu};
use crate::handles::{self, Object};
use crate::memory::Kind;
use crate::pool::{self, Pool};
use crate::work::Work;

/// `CUmemPoolProps`: type of allocation, type of handles, where (type and number), a pointer, the
/// most bytes, and what is reserved.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PoolProperties {
    allocation: u32,
    handles: u32,
    location: u32,
    device: i32,
    attributes: Word,
    most: usize,
    usage: u16,
    reserved: [u8; 54],
}

const PINNED: u32 = 1;
const DEVICE: u32 = 1;

fn insert(pool: Pool) -> Word {
    handles::insert(|_| Object::Pool(Arc::new(pool)))
}

/// The GPU's own pool, and the one that is used.
fn pools(gpu: &'static Gpu) -> (Word, Word) {
    let mut pools = gpu.pools.lock().unwrap_or_else(PoisonError::into_inner);
    if pools.own == 0 {
        pools.own = insert(Pool::new(gpu, 0));
        pools.current = pools.own;
    }
    (pools.own, pools.current)
}

fn allocate(out: Out<u64>, bytes: usize, pool: Word, lane: &Lane) -> Answer {
    out.check()?;
    let pool = handles::pool(pool)?;
    if !std::ptr::eq(pool.gpu, lane.context.gpu()) {
        return Err(CuResult::INVALID_VALUE);
    }
    let bytes = u64::try_from(bytes).map_err(|_| CuResult::OUT_OF_MEMORY)?;
    pool.take(bytes)?;
    let made = lane.context.memory().allocate(bytes, Kind::Program);
    let address = made.inspect_err(|_| pool.give_back(bytes))?;
    pool::allocated(address, pool, bytes);
    out.put(address)
}

/// How many bytes an attribute has.
fn width(attribute: u32) -> usize {
    if attribute <= pool_attribute::REUSE_ALLOW_INTERNAL_DEPENDENCIES { 4 } else { 8 }
}

entry_points! {
    fn cuDeviceGetDefaultMemPool(pool: Out<Word>, device: i32) {
        pool.put(pools(gpu(device)?).0)
    }

    fn cuDeviceGetMemPool(pool: Out<Word>, device: i32) {
        pool.put(pools(gpu(device)?).1)
    }

    fn cuDeviceSetMemPool(device: i32, pool: Word) {
        let gpu = gpu(device)?;
        if !std::ptr::eq(handles::pool(pool)?.gpu, gpu) {
            return Err(CuResult::INVALID_VALUE);
        }
        pools(gpu);
        gpu.pools.lock().unwrap_or_else(PoisonError::into_inner).current = pool;
        Ok(())
    }

    fn cuMemPoolCreate(pool: Out<Word>, properties: Array<PoolProperties>) {
        pool.check()?;
        driver()?;
        let wanted = properties.get(0)?;
        if wanted.allocation != PINNED || wanted.location != DEVICE {
            return Err(CuResult::INVALID_VALUE);
        }
        if wanted.handles != 0 {
            return Err(CuResult::NOT_SUPPORTED);
        }
        let most = u64::try_from(wanted.most).map_err(|_| CuResult::INVALID_VALUE)?;
        pool.put(insert(Pool::new(gpu(wanted.device)?, most)))
    }

    fn cuMemPoolDestroy(pool: Word) {
        let gpu = handles::pool(pool)?.gpu;
        let (own, _) = pools(gpu);
        if pool == own {
            return Err(CuResult::INVALID_VALUE);
        }
        let mut pools = gpu.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.current == pool {
            pools.current = own;
        }
        handles::remove(pool);
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: Word, attribute: u32, value: Word) {
        let found = handles::pool(pool)?.attribute(attribute)?.to_ne_bytes();
        HostBytes::new(value, width(attribute))?.write(&found);
        Ok(())
    }

    fn cuMemPoolSetAttribute(pool: Word, attribute: u32, value: Word) {
        let mut bytes = HostBytes::new(value, width(attribute))?.to_vec();
        bytes.resize(8, 0);
        let value = bytes.try_into().map(u64::from_ne_bytes);
        let value = value.map_err(|_| CuResult::INVALID_VALUE)?;
        handles::pool(pool)?.set_attribute(attribute, value)
    }

    fn cuMemPoolTrimTo(pool: Word, _keep: usize) {
        // Nothing is kept beyond what is used.
        handles::pool(pool).map(drop)
    }

    fn cuMemPoolGetAccess(flags: Out<u32>, pool: Word, location: Array<[u32; 2]>) {
        let pool = handles::pool(pool)?;
        let [kind, device] = location.get(0)?;
        let own = kind == DEVICE && i32::try_from(device) == Ok(pool.gpu.ordinal);
        // To read and to write on its own GPU; not at all on others.
        flags.put(if own { 3 } else { 0 })
    }

    fn cuMemPoolSetAccess(pool: Word, wanted: Array<[u32; 3]>, count: usize) {
        let pool = handles::pool(pool)?;
        for index in 0..count {
            let [kind, device, flags] = wanted.get(index)?;
            let own = kind == DEVICE && i32::try_from(device) == Ok(pool.gpu.ordinal);
            if !own && flags != 0 {
                return Err(CuResult::NOT_SUPPORTED);
            }
        }
        Ok(())
    }

    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Word) {
        let lane = Lane::of(stream)?;
        let (_, pool) = pools(lane.context.gpu());
        allocate(address, bytes, pool, &lane)
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: Word, stream: Word) {
        allocate(address, bytes, pool, &Lane::of(stream)?)
    }

    fn cuMemFreeAsync(address: u64, stream: Word) {
        let lane = Lane::of(stream)?;
        if !lane.context.memory().is_freeable(address) {
            return Err(CuResult::INVALID_VALUE);
        }
        pool::freed(address);
        lane.submit(Work::Free { address }).map(drop)
    }
}
