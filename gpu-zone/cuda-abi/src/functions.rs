//! The names that the driver's library exports.

/// Everything that `libcuda.so.1` of CUDA 13.0 exports, older names of a function and those for
/// OpenGL, EGL and VDPAU included, sorted. A position in this list is a [`FunctionIndex`], which
/// goes over the wire and into stats: with another list, their versions are others too.
pub const FUNCTIONS: &[&str] = &NAMES;

const TEXT: &str = include_str!("functions.txt");
const COUNT: usize = count(TEXT);
const NAMES: [&str; COUNT] = names(TEXT);

/// A function of the driver API: its position in [`FUNCTIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionIndex(u16);

impl FunctionIndex {
    /// The function with this name.
    pub fn of(name: &str) -> Option<Self> {
        let position = FUNCTIONS.binary_search(&name).ok()?;
        u16::try_from(position).ok().map(Self)
    }

    /// The function at this position.
    pub fn new(position: u32) -> Option<Self> {
        let position = u16::try_from(position).ok()?;
        (usize::from(position) < COUNT).then_some(Self(position))
    }

    /// The position.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The name.
    pub fn name(self) -> &'static str {
        FUNCTIONS.get(usize::from(self.0)).copied().unwrap_or("")
    }
}

const fn count(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut lines, mut at) = (0, 0);
    while at < bytes.len() {
        if bytes[at] == b'\n' {
            lines += 1;
        }
        at += 1;
    }
    lines
}

const fn names(text: &'static str) -> [&'static str; COUNT] {
    let mut names = [""; COUNT];
    let mut rest = text;
    let mut index = 0;
    while index < COUNT {
        let bytes = rest.as_bytes();
        let mut end = 0;
        while bytes[end] != b'\n' {
            end += 1;
        }
        names[index] = rest.split_at(end).0;
        rest = rest.split_at(end + 1).1;
        index += 1;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found() {
        assert!(FUNCTIONS.is_sorted());
        for name in ["cuInit", "cuMemAlloc_v2", "cuMemAlloc", "cuLaunchKernel_ptsz"] {
            let index = FunctionIndex::of(name).expect(name);
            assert_eq!(index.name(), name);
            assert_eq!(FunctionIndex::new(index.get().into()), Some(index));
        }
        assert_eq!(FunctionIndex::of("cudaMalloc"), None);
        assert_eq!(FunctionIndex::new(u32::MAX), None);
    }

    #[test]
    fn every_name_is_a_symbol() {
        for name in FUNCTIONS {
            assert!(name.starts_with("cu"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{name}");
        }
    }
}
