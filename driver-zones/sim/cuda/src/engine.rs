//! The copy engine.

/// From here on bytes go past the processors' caches, as those of a GPU's copy engine do: who reads
/// them next, the program or a kernel, runs on another processor as likely as not.
const LARGE: usize = 256 << 10;

/// Copies between the host and the device; the ranges may overlap.
///
/// # Safety
/// As for [`std::ptr::copy`].
pub(crate) unsafe fn transfer(from: *const u8, to: *mut u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    if length >= LARGE && from.addr().abs_diff(to.addr()) >= length {
        // SAFETY: the ranges are apart; the rest is for the caller to promise.
        unsafe { past_the_caches(from, to, length) };
        return;
    }
    // SAFETY: for the caller to promise.
    unsafe { std::ptr::copy(from, to, length) };
}

#[cfg(target_arch = "x86_64")]
unsafe fn past_the_caches(from: *const u8, to: *mut u8, length: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    const WORD: usize = 16;
    const LINE: usize = 4 * WORD;
    let head = to.align_offset(LINE).min(length);
    let lines = (length - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: all of it lies within both ranges; what is streamed to is aligned from `head` on.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for line in 0..lines {
            let at = head + line * LINE;
            let source = from.add(at).cast::<__m128i>();
            let words = [0, 1, 2, 3].map(|word| _mm_loadu_si128(source.add(word)));
            let target = to.add(at).cast::<__m128i>();
            for (word, bytes) in words.into_iter().enumerate() {
                _mm_stream_si128(target.add(word), bytes);
            }
        }
        // Such writes are not ordered with what is written after them, that the copy is done for one.
        _mm_sfence();
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), length - tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_and_none_beside_them() {
        let source: Vec<u8> = (1..=251).cycle().take(LARGE + 500).collect();
        for (from, to, length) in
            [(0, 0, 0), (1, 7, 100), (0, 0, LARGE), (3, 1, LARGE + 129), (5, 63, LARGE + 1)]
        {
            let mut target = vec![0u8; LARGE + 600];
            // SAFETY: both ranges lie within their vectors.
            unsafe { transfer(source[from..].as_ptr(), target[to..].as_mut_ptr(), length) };
            assert!(target[to..to + length] == source[from..from + length], "{from} {to} {length}");
            assert!(target[..to].iter().chain(&target[to + length..]).all(|byte| *byte == 0));
        }
    }

    #[test]
    fn ranges_may_overlap() {
        let mut bytes: Vec<u8> = (1..=251).cycle().take(LARGE + 100).collect();
        let wanted = bytes[..LARGE].to_vec();
        let at = bytes.as_mut_ptr();
        // SAFETY: both ranges lie within the vector.
        unsafe { transfer(at, at.add(100), LARGE) };
        assert!(bytes[100..] == wanted);
    }
}
