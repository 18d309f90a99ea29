//! What this process holds, as far as this library answers for it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;

use gpuzone_wire::spec::{ContextId, FunctionId, LinkInput, ModuleId, ParamInfo};

use crate::api::Options;

pub(crate) struct Context {
    pub(crate) device: usize,
    pub(crate) flags: u32,
    /// Of streams: the least and the greatest, which is the smaller number.
    pub(crate) priorities: (i32, i32),
    /// Hints that are kept to be told.
    pub(crate) cache_config: u32,
    pub(crate) shared_config: u32,
}

#[derive(Default)]
pub(crate) struct Primary {
    pub(crate) holders: u32,
    pub(crate) flags: u32,
}

pub(crate) struct Function {
    pub(crate) context: ContextId,
    pub(crate) module: ModuleId,
    /// With the zero that C wants at its end.
    pub(crate) name: CString,
    pub(crate) parameters: Vec<ParamInfo>,
    pub(crate) attributes: Vec<i32>,
}

/// An image that is loaded where it is needed.
pub(crate) struct Library {
    pub(crate) image: Vec<u8>,
    pub(crate) options: Options,
    pub(crate) modules: HashMap<ContextId, ModuleId>,
    pub(crate) kernels: HashMap<String, u32>,
}

/// A kernel of a library.
pub(crate) struct Kernel {
    pub(crate) library: u32,
    pub(crate) name: CString,
    pub(crate) functions: HashMap<ContextId, FunctionId>,
}

/// What is to be linked, and what was made of it.
pub(crate) struct Linker {
    pub(crate) context: ContextId,
    pub(crate) options: Options,
    pub(crate) inputs: Vec<LinkInput>,
    pub(crate) data: Vec<u8>,
    pub(crate) made: Option<Vec<u8>>,
}

pub(crate) struct Stream {
    pub(crate) context: ContextId,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
}

/// Device memory that the program knows of.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) context: ContextId,
    /// The module whose variable it is; `None` for allocations.
    pub(crate) module: Option<ModuleId>,
    /// Counts ranges, so that a new one at an old address is another one.
    pub(crate) number: u64,
}

#[derive(Default)]
pub(crate) struct Ranges {
    by_base: BTreeMap<u64, Range>,
    made: u64,
}

impl Ranges {
    pub(crate) fn add(
        &mut self,
        base: u64,
        bytes: u64,
        context: ContextId,
        module: Option<ModuleId>,
    ) {
        self.made += 1;
        let range = Range { base, bytes, context, module, number: self.made };
        self.by_base.insert(base, range);
    }

    pub(crate) fn remove(&mut self, base: u64) -> Option<Range> {
        self.by_base.remove(&base)
    }

    pub(crate) fn get(&self, base: u64) -> Option<&Range> {
        self.by_base.get(&base)
    }

    /// The range that `pointer` lies in.
    pub(crate) fn around(&self, pointer: u64) -> Option<Range> {
        let (_, range) = self.by_base.range(..=pointer).next_back()?;
        (pointer - range.base < range.bytes).then_some(*range)
    }

    /// Whether `bytes` from `pointer` on lie in one range.
    pub(crate) fn cover(&self, pointer: u64, bytes: u64) -> bool {
        self.around(pointer).is_some_and(|range| bytes <= range.bytes - (pointer - range.base))
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Range) -> bool) {
        self.by_base.retain(|_, range| keep(range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_range_around_a_pointer() {
        let mut ranges = Ranges::default();
        ranges.add(100, 10, ContextId(1), None);
        ranges.add(110, 5, ContextId(1), None);
        assert!(ranges.cover(100, 10) && ranges.cover(109, 1) && ranges.cover(112, 3));
        assert!(!ranges.cover(105, 6) && !ranges.cover(99, 1) && !ranges.cover(115, 0));
        assert!(!ranges.cover(112, u64::MAX));
        assert_eq!(ranges.around(114).map(|range| range.base), Some(110));
    }
}
