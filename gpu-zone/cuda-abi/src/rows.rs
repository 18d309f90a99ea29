//! `CUDA_MEMCPY2D` and `CUDA_MEMCPY3D` as what they come to: rows of bytes at two ends.

use crate::{CuResult, memory_type};

/// Words of `CUDA_MEMCPY2D`.
pub const WORDS_2D: usize = 16;
/// Words of `CUDA_MEMCPY3D`.
pub const WORDS_3D: usize = 25;

/// Where one end of a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory of the host.
    Host,
    /// Memory of a device.
    Device,
    /// Whichever of them the address is of.
    Either,
}

/// One end of a copy: where its first row begins, and how far the next ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// What the address is of.
    pub place: Place,
    /// The first row.
    pub address: u64,
    /// From a row to the next, in bytes.
    pub pitch: u64,
    /// From a slice to the next, in bytes.
    pub slice: u64,
}

/// A copy of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Where from.
    pub source: End,
    /// Where to.
    pub target: End,
    /// Bytes of a row.
    pub width: u64,
    /// Rows of a slice.
    pub height: u64,
    /// Slices.
    pub depth: u64,
}

struct RawEnd {
    x: u64,
    y: u64,
    z: u64,
    kind: u64,
    host: u64,
    device: u64,
    pitch: u64,
    height: u64,
}

impl Rows {
    /// What a `CUDA_MEMCPY2D` asks for.
    ///
    /// # Errors
    /// When it cannot be, or is of an array.
    pub fn of_2d(words: &[u64; WORDS_2D]) -> Result<Self, CuResult> {
        let [sx, sy, sk, sh, sd, _, sp, tx, ty, tk, th, td, _, tp, width, height] = *words;
        let end = |x, y, kind, host, device, pitch| RawEnd {
            x,
            y,
            z: 0,
            kind,
            host,
            device,
            pitch,
            height: 0,
        };
        Self::of(end(sx, sy, sk, sh, sd, sp), end(tx, ty, tk, th, td, tp), [width, height, 1])
    }

    /// What a `CUDA_MEMCPY3D` asks for.
    ///
    /// # Errors
    /// When it cannot be, or is of an array.
    pub fn of_3d(words: &[u64; WORDS_3D]) -> Result<Self, CuResult> {
        let end = |at: usize| {
            let [x, y, z, lod, kind, host, device, _, _, pitch, height] =
                *words[at..].first_chunk().ok_or(CuResult::INVALID_VALUE)?;
            if lod == 0 {
                Ok(RawEnd { x, y, z, kind, host, device, pitch, height })
            } else {
                Err(CuResult::INVALID_VALUE)
            }
        };
        Self::of(end(0)?, end(11)?, [words[22], words[23], words[24]])
    }

    /// A `CUDA_MEMCPY3D` that asks for this.
    pub fn to_3d(&self) -> [u64; WORDS_3D] {
        let mut words = [0; WORDS_3D];
        for (at, end) in [(0, self.source), (11, self.target)] {
            let (kind, host, device) = match end.place {
                Place::Host => (memory_type::HOST, end.address, 0),
                Place::Device => (memory_type::DEVICE, 0, end.address),
                Place::Either => (memory_type::UNIFIED, 0, end.address),
            };
            let height = end.slice.checked_div(end.pitch).unwrap_or(0);
            words[at + 4..at + 7].copy_from_slice(&[kind.into(), host, device]);
            words[at + 9..at + 11].copy_from_slice(&[end.pitch, height]);
        }
        words[22..].copy_from_slice(&[self.width, self.height, self.depth]);
        words
    }

    fn of(source: RawEnd, target: RawEnd, extent: [u64; 3]) -> Result<Self, CuResult> {
        let (source, target) = (source.checked(extent)?, target.checked(extent)?);
        let [width, height, depth] = extent;
        Ok(Self { source, target, width, height, depth })
    }

    /// Whether there is nothing to copy.
    pub fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0 || self.depth == 0
    }

    /// Where each slice begins: at the source and at the target.
    pub fn slices(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (source, target) = (self.source, self.target);
        let at = |end: End, slice: u64| end.address.wrapping_add(slice.wrapping_mul(end.slice));
        (0..self.depth).map(move |slice| (at(source, slice), at(target, slice)))
    }

    /// Where each row begins: at the source and at the target.
    pub fn rows(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (from, to, height) = (self.source.pitch, self.target.pitch, self.height);
        let in_slice = move |(source, target): (u64, u64)| {
            (0..height).map(move |row| {
                let at = |begin: u64, pitch: u64| begin.wrapping_add(row.wrapping_mul(pitch));
                (at(source, from), at(target, to))
            })
        };
        self.slices().flat_map(in_slice)
    }
}

impl RawEnd {
    fn checked(self, [width, height, depth]: [u64; 3]) -> Result<End, CuResult> {
        let invalid = CuResult::INVALID_VALUE;
        // The kind has 32 bits; what is behind them is nobody's.
        let (place, base) = match u32::try_from(self.kind & 0xffff_ffff) {
            Ok(memory_type::HOST) => (Place::Host, self.host),
            Ok(memory_type::DEVICE) => (Place::Device, self.device),
            Ok(memory_type::UNIFIED) => (Place::Either, self.device),
            Ok(memory_type::ARRAY) => return Err(CuResult::NOT_SUPPORTED),
            _ => return Err(invalid),
        };
        let row = self.x.checked_add(width).ok_or(invalid)?;
        // A pitch of none is as wide as the rows are, as is a height of none.
        let pitch = if self.pitch == 0 { row } else { self.pitch };
        let rows = self.y.checked_add(height).ok_or(invalid)?;
        let high = if self.height == 0 { rows } else { self.height };
        if (height > 1 && pitch < row) || (depth > 1 && high < rows) {
            return Err(invalid);
        }
        let slice = pitch.checked_mul(high).ok_or(invalid)?;
        let offset = |z: u64, y: u64, x: u64| {
            let begin = slice.checked_mul(z)?.checked_add(pitch.checked_mul(y)?)?;
            base.checked_add(begin)?.checked_add(x)
        };
        let last_slice = self.z.checked_add(depth.saturating_sub(1)).ok_or(invalid)?;
        // The end of the last row is an address too.
        offset(last_slice, rows, row).ok_or(invalid)?;
        let address = offset(self.z, self.y, self.x).ok_or(invalid)?;
        Ok(End { place, address, pitch, slice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_dimensions() {
        let host = u64::from(memory_type::HOST);
        let device = u64::from(memory_type::DEVICE);
        let mut words = [2, 1, host, 1000, 0, 0, 32, 4, 3, device, 0, 5000, 0, 64, 8, 2];
        let rows = Rows::of_2d(&words).expect("rows");
        assert_eq!(rows.rows().collect::<Vec<_>>(), [(1034, 5196), (1066, 5260)]);
        assert_eq!((rows.source.place, rows.target.place), (Place::Host, Place::Device));
        words[13] = 7;
        assert_eq!(Rows::of_2d(&words), Err(CuResult::INVALID_VALUE), "rows overlap");
        words[9] = u64::from(memory_type::ARRAY);
        assert_eq!(Rows::of_2d(&words), Err(CuResult::NOT_SUPPORTED));
        assert_eq!(Rows::of_2d(&[u64::MAX; 16]), Err(CuResult::INVALID_VALUE));
    }

    #[test]
    fn rows_of_three_dimensions() {
        let device = u64::from(memory_type::DEVICE);
        let mut words = [0u64; WORDS_3D];
        (words[4], words[6], words[9], words[10]) = (device, 100, 10, 3);
        (words[13], words[15], words[17], words[20], words[21]) = (1, device, 1000, 4, 2);
        (words[22], words[23], words[24]) = (4, 2, 2);
        let rows = Rows::of_3d(&words).expect("rows");
        let expected = [(100, 1008), (110, 1012), (130, 1016), (140, 1020)];
        assert_eq!(rows.rows().collect::<Vec<_>>(), expected);
        assert_eq!(Rows::of_3d(&rows.to_3d()), Ok(rows));
        words[3] = 1;
        assert_eq!(Rows::of_3d(&words), Err(CuResult::INVALID_VALUE), "a level of detail");
    }
}
