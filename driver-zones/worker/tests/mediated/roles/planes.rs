//! Fills of two bytes, and boxes of three dimensions in all directions.

use cudarc::driver::sys::{self, CUresult};

use super::{allocate, context, get, ok, read, write};

/// Kinds of memory in a `CUDA_MEMCPY3D`.
const HOST: u64 = 1;
const DEVICE: u64 = 2;

pub(super) fn halves() {
    context();
    let memory = allocate(256);
    // SAFETY: memory of 256 bytes, a stream.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuMemsetD16_v2(memory, 0x1234, 4));
        assert_eq!(read(memory, 3), [0x1234_1234, 0x1234_1234, 0]);
        ok(sys::cuMemsetD16Async(memory + 2, 0xabcd, 2, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(memory, 3), [0xabcd_1234, 0x1234_abcd, 0]);
        // Three of each row of 32 bytes.
        ok(sys::cuMemsetD2D16_v2(memory + 64, 32, 7, 3, 2));
        assert_eq!(read(memory + 64, 2), [0x0007_0007, 7]);
        assert_eq!(read(memory + 96, 3), [0x0007_0007, 7, 0]);
        assert_eq!(read(memory + 128, 1), [0], "no third row");
        ok(sys::cuMemsetD2D16Async(memory + 66, 32, 9, 1, 2, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(
            (read(memory + 64, 1), read(memory + 96, 1)),
            (vec![0x0009_0007], vec![0x0009_0007])
        );
        // Where two bytes do not begin, and beyond the end.
        for refused in [
            sys::cuMemsetD16_v2(memory + 1, 1, 1),
            sys::cuMemsetD16_v2(memory, 1, 129),
            sys::cuMemsetD2D16_v2(memory, 128, 1, 65, 2),
        ] {
            assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    }
}

/// One end of a copy: where its box begins, what memory it is, its pitch and height in rows.
struct End {
    begin: [u64; 3],
    kind: u64,
    address: u64,
    pitch: u64,
    height: u64,
}

impl End {
    fn words(&self) -> [u64; 11] {
        let &End { begin: [x, y, z], kind, address, pitch, height } = self;
        let of = |wanted| if kind == wanted { address } else { 0 };
        [x, y, z, 0, kind, of(HOST), of(DEVICE), 0, 0, pitch, height]
    }
}

/// A `CUDA_MEMCPY3D`, by its words.
fn words(from: &End, to: &End, extent: [u64; 3]) -> [u64; 25] {
    let words: Vec<u64> = [&from.words()[..], &to.words(), &extent].concat();
    words.try_into().expect("as many")
}

/// 3 slices of 4 rows of 5 words, of which a box of 2 by 2 by 2 words goes around.
pub(super) fn boxes() {
    context();
    let source: Vec<u32> = (0..60).collect();
    let mut back = vec![0u32; 60];
    let (large, small) = (allocate(4 * 60), allocate(4 * 24));
    write(large, &source);
    let source_at = source.as_ptr().expose_provenance() as u64;
    let whole = |kind, address| End { begin: [4, 1, 1], kind, address, pitch: 20, height: 4 };
    // Rows of 3 words, 2 rows to a slice, the box at the beginning of the second word.
    let part = |address| End { begin: [4, 0, 0], kind: DEVICE, address, pitch: 12, height: 2 };
    let extent = [8, 2, 2];
    let expected = [0, 26, 27, 0, 31, 32, 0, 46, 47, 0, 51, 52];
    // SAFETY: copies between memory of the sizes that their words say.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let there = words(&whole(HOST, source_at), &part(small), extent);
        ok(sys::cuMemcpy3DAsync_v2((&raw const there).cast(), stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(small, 12), expected, "from the host");
        ok(sys::cuMemsetD32_v2(small, 0, 24));
        let across = words(&whole(DEVICE, large), &part(small), extent);
        ok(sys::cuMemcpy3DAsync_v2((&raw const across).cast(), stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(small, 12), expected, "within the device");
        ok(sys::cuMemsetD32_v2(small, 0, 24));
        ok(sys::cuMemcpy3D_v2((&raw const across).cast()));
        ok(sys::cuCtxSynchronize());
        assert_eq!(read(small, 12), expected, "within the device, waited for");

        let landed: Vec<u32> = (0..60)
            .map(|word| if [26, 27, 31, 32, 46, 47, 51, 52].contains(&word) { word } else { 0 })
            .collect();
        for wait in [true, false] {
            back.fill(0);
            let back_at = back.as_mut_ptr().expose_provenance() as u64;
            let home = words(&part(small), &whole(HOST, back_at), extent);
            let copied: *const sys::CUDA_MEMCPY3D = (&raw const home).cast();
            let told = if wait {
                sys::cuMemcpy3D_v2(copied)
            } else {
                sys::cuMemcpy3DAsync_v2(copied, stream)
            };
            ok(told);
            ok(sys::cuStreamSynchronize(stream));
            assert_eq!(back, landed, "to the host, {wait}");
        }
        // One slice more than there is.
        let beyond = words(&whole(DEVICE, large), &part(small), [8, 2, 3]);
        let refused = sys::cuMemcpy3DAsync_v2((&raw const beyond).cast(), stream);
        assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuCtxSynchronize());
    }
}
