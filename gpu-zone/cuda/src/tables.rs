//! What this process holds, as far as this library answers for it.

use std::collections::BTreeMap;
use std::ffi::CString;

use gpuzone_wire::spec::{ContextId, FunctionId, LinkInput, ModuleId, ParamInfo, PhysicalId};

use crate::api::Options;

/// By numbers of this library's own, some of which each call looks up.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

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

/// Device memory without addresses.
pub(crate) struct Physical {
    pub(crate) device: i32,
    pub(crate) holders: u32,
}

/// Device memory that the program knows of.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) context: ContextId,
    /// The module whose variable it is; `None` for allocations.
    pub(crate) module: Option<ModuleId>,
    /// The memory that is mapped here and what may be done with it; `None` for all others.
    pub(crate) mapped: Option<(PhysicalId, u32)>,
    /// Counts ranges, so that a new one at an old address is another one.
    pub(crate) number: u64,
}

/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`: what copies need of mapped memory.
const READ_WRITE: u32 = 3;

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
        let range = Range { base, bytes, context, module, mapped: None, number: self.made };
        self.by_base.insert(base, range);
    }

    /// Memory that was mapped, which nobody may touch yet. It is of no context.
    pub(crate) fn add_mapped(&mut self, base: u64, bytes: u64, memory: PhysicalId) {
        self.made += 1;
        let (context, number) = (ContextId(0), self.made);
        let mapped = Some((memory, 0));
        self.by_base.insert(base, Range { base, bytes, context, module: None, mapped, number });
    }

    pub(crate) fn set_access(&mut self, base: u64, bytes: u64, flags: u32) {
        for (_, range) in self.by_base.range_mut(base..base.saturating_add(bytes)) {
            if let Some((_, access)) = &mut range.mapped {
                *access = flags;
            }
        }
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

    /// Whether `bytes` from `pointer` on lie in one range, or in mappings one after the other.
    pub(crate) fn cover(&self, pointer: u64, bytes: u64) -> bool {
        let Some(range) = self.around(pointer) else { return false };
        if range.mapped.is_some_and(|(_, access)| access != READ_WRITE) {
            return false;
        }
        let here = range.bytes - (pointer - range.base);
        // What is mapped goes on in the next mapping.
        bytes <= here
            || range.mapped.is_some()
                && self.get(range.base + range.bytes).is_some_and(|next| next.mapped.is_some())
                && self.cover(range.base + range.bytes, bytes - here)
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

    #[test]
    fn mappings_go_on_in_the_next_one_once_there_is_access() {
        let mut ranges = Ranges::default();
        ranges.add_mapped(100, 10, PhysicalId(1));
        ranges.add_mapped(110, 10, PhysicalId(2));
        ranges.add(120, 10, ContextId(1), None);
        assert!(!ranges.cover(100, 1), "no access yet");
        ranges.set_access(100, 20, 3);
        assert!(ranges.cover(105, 15) && !ranges.cover(105, 16));
    }
}
