//! Copies of rows. What crosses the ring has no gaps.

use gpuzone_cuda_abi::{CUstream, CuResult, memory_type};
use gpuzone_wire::ring::{Bulk, MAX_BULK};
use gpuzone_wire::spec::{
    Call, ContextId, CopyRowsOnDevice, CopyRowsToDevice, CopyRowsToHost, DevicePtr,
};
use gpuzone_wire::stats::Copied;

use super::Session;
use crate::driver::Driver;

/// One end of a copy of rows, as the driver takes it.
#[derive(Clone, Copy)]
enum End {
    Host(*mut u8, u64),
    Device(u64, u64),
}

impl End {
    /// Type, host's address, device's address, array, pitch.
    fn words(self) -> [u64; 5] {
        match self {
            Self::Host(at, pitch) => {
                [memory_type::HOST.into(), at.expose_provenance() as u64, 0, 0, pitch]
            }
            Self::Device(at, pitch) => [memory_type::DEVICE.into(), 0, at, 0, pitch],
        }
    }
}

/// Has the driver copy rows.
///
/// # Safety
/// Both ends have such rows, and the stream is one of the current context.
unsafe fn copy_rows(
    driver: &Driver,
    target: End,
    source: End,
    (width, rows): (u64, u64),
    stream: CUstream,
) -> CuResult {
    let ([sk, sh, sd, sa, sp], [tk, th, td, ta, tp]) = (source.words(), target.words());
    let words = [0, 0, sk, sh, sd, sa, sp, 0, 0, tk, th, td, ta, tp, width, rows];
    // SAFETY: a `CUDA_MEMCPY2D`, whose ends the caller vouches for.
    unsafe { (driver.copy_rows)(&raw const words, stream) }
}

impl Session {
    /// Bytes of the rows alone, which must lie within live memory of this session.
    fn check_rows(
        &self,
        at: DevicePtr,
        pitch: u64,
        width: u64,
        rows: u64,
    ) -> Result<u64, CuResult> {
        let invalid = CuResult::INVALID_VALUE;
        if width == 0 || rows == 0 || (rows > 1 && pitch < width) {
            return Err(invalid);
        }
        let before = pitch.checked_mul(rows - 1).ok_or(invalid)?;
        self.check_range(at, before.checked_add(width).ok_or(invalid)?)?;
        width.checked_mul(rows).ok_or(invalid)
    }

    pub(super) fn copy_rows_in(
        &mut self,
        context: ContextId,
        r: &CopyRowsToDevice,
        bulk: Bulk,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, r.stream)?;
        self.enter(context)?;
        let bytes = self.check_rows(r.target, r.pitch, r.width, r.rows)?;
        if bytes != bulk.len() as u64 {
            return Err(CuResult::INVALID_VALUE);
        }
        let source = End::Host(bulk.as_ptr().cast_mut(), r.width);
        let target = End::Device(r.target.0, r.pitch);
        let (extent, driver) = ((r.width, r.rows), &self.lease.driver);
        // SAFETY: the target was checked; the source lies in the ring, with as many bytes.
        let copied = unsafe { copy_rows(driver, target, source, extent, stream) };
        self.ask(copied)?;
        self.lease.stats.add_copied(Copied::ToDevice, bytes);
        // The record is the tenant's again after this.
        self.wait_for(stream)
    }

    pub(super) fn copy_rows_out(
        &mut self,
        call: &mut Call<'_>,
        r: &CopyRowsToHost,
    ) -> Result<(), CuResult> {
        let stream = self.stream(call.context, r.stream)?;
        self.enter(call.context)?;
        self.check_rows(r.source, r.pitch, r.width, r.rows)?;
        let at_once = (MAX_BULK as u64 / r.width).min(r.rows);
        if at_once == 0 {
            // Rows that long go one by one, as other copies do.
            return Err(CuResult::INVALID_VALUE);
        }
        self.before_waiting(stream);
        let (mut at, mut left) = (r.source.0, r.rows);
        let lengths = std::iter::from_fn(|| {
            let rows = left.min(at_once);
            left -= rows;
            usize::try_from(rows * r.width).ok().filter(|bytes| *bytes > 0)
        });
        self.send_pieces(call, stream, lengths, |driver, target, bytes| {
            let rows = bytes as u64 / r.width;
            let (target, source) = (End::Host(target, r.width), End::Device(at, r.pitch));
            at = at.wrapping_add(rows.wrapping_mul(r.pitch));
            // SAFETY: the source was checked, the target has room for the piece; a stream of the
            // current context.
            unsafe { copy_rows(driver, target, source, (r.width, rows), stream) }
        })
    }

    pub(super) fn copy_rows_within(
        &mut self,
        context: ContextId,
        r: &CopyRowsOnDevice,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, r.stream)?;
        self.enter(context)?;
        let bytes = self.check_rows(r.target, r.target_pitch, r.width, r.rows)?;
        self.check_rows(r.source, r.source_pitch, r.width, r.rows)?;
        let target = End::Device(r.target.0, r.target_pitch);
        let source = End::Device(r.source.0, r.source_pitch);
        self.work(context, r.stream, stream, |driver| {
            // SAFETY: both ends were checked.
            unsafe { copy_rows(driver, target, source, (r.width, r.rows), stream) }
        })?;
        self.lease.stats.add_copied(Copied::OnDevice, bytes);
        Ok(())
    }
}
