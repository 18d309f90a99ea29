//! What a node's free room is worth to the pods that are likely to come.
//!
//! For each class `m` of them, a node has *room now* (what is free on GPUs that could take one
//! more) and *room for many* (what as many as fit would use). Both are 0 on a node that lacks the
//! processors, so GPUs that cannot be used for want of CPU are worth nothing. A class counts by
//! its frequency and, squared, by how scarce its room is in the whole cluster.

use super::gaps::GapValues;
use super::{GpuRoom, MixClass, NodeRoom};

/// Thousandths beyond what a GPU has: a demand that it never serves.
const NEVER: u16 = 1001;
/// How much room a class has, as a part of the cluster, below which it gets no scarcer: what
/// is nearly gone must not outweigh everything else.
const SCARCEST: f64 = 0.05;
/// What the value of gaps weighs against the room of classes.
const GAPS: f64 = 2.0;
/// What a fuller node weighs against both: it decides where they do not.
const FULLNESS: f64 = 20.0;

/// One class, as numbers.
#[derive(Clone, Copy, Debug)]
struct Class {
    gpus: u32,
    cpu_milli: u64,
    memory: u64,
    /// Frequency over scarcity; all add up to 1.
    weight: f64,
    frequency: f64,
}

/// What the classes come to on one kind of GPU.
#[derive(Clone, Debug)]
struct Table {
    of: GpuRoom,
    /// The distinct amounts, in thousandths of the GPU.
    sizes: Vec<u16>,
    /// For each class, its amount's place in `sizes`.
    size_of: Vec<u16>,
    gaps: GapValues,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlook {
    demands: Vec<MixClass>,
    classes: Vec<Class>,
    tables: Vec<Table>,
    largest_cpu: u64,
    largest_gpus: usize,
}

/// What GPUs of one node have for one size.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// How many pieces of it.
    pieces: u32,
    /// On how many GPUs.
    gpus: u32,
    /// Thousandths that are free on those.
    free: u32,
    size: u32,
}

impl Outlook {
    pub(super) fn new(classes: &[MixClass]) -> Self {
        let with_gpus = classes.iter().filter_map(|class| Some((class, class.gpu()?)));
        let numbers = with_gpus.clone().map(|(class, demand)| Class {
            gpus: demand.gpus.get(),
            cpu_milli: class.pod.host.cpu_milli,
            memory: class.pod.host.memory.get(),
            weight: class.weight,
            frequency: class.weight,
        });
        let classes = numbers.collect();
        let demands = with_gpus.map(|(class, _)| class.clone()).collect();
        Self { demands, classes, ..Self::default() }
    }

    /// The same for a cluster with this room.
    pub(super) fn in_cluster<'a>(
        mut self,
        nodes: impl Iterator<Item = &'a NodeRoom> + Clone,
    ) -> Self {
        self.largest_cpu = nodes.clone().map(|node| node.host().cpu_milli).max().unwrap_or(0);
        self.largest_gpus = nodes.clone().map(|node| node.gpus().len()).max().unwrap_or(0);
        for gpu in nodes.clone().flat_map(NodeRoom::gpus) {
            if self.table(gpu).is_none() {
                self.tables.push(Table::new(gpu, &self.demands));
            }
        }
        let mut supply = vec![0.0; self.classes.len()];
        let mut capacity = 0.0;
        for node in nodes {
            capacity += 1000.0 * node.gpus().len() as f64;
            self.each_room(node, |at, room| {
                if let Some(sum) = supply.get_mut(at) {
                    *sum += room / 2.0;
                }
            });
        }
        for (class, supply) in self.classes.iter_mut().zip(supply) {
            let scarcity = supply / f64::max(capacity, 1.0) + SCARCEST;
            class.weight = class.frequency / (scarcity * scarcity);
        }
        let total: f64 = self.classes.iter().map(|class| class.weight).sum();
        self.classes.iter_mut().for_each(|class| class.weight /= total);
        self
    }

    /// What is free of `node`, as worth to what is likely to come; in thousandths of GPUs.
    pub(super) fn worth(&self, node: &NodeRoom) -> f64 {
        let mut rooms = 0.0;
        self.each_room(node, |at, room| {
            rooms += self.classes.get(at).map_or(0.0, |class| class.weight * room);
        });
        let gaps: f64 = node.gpus().iter().map(|gpu| self.gap_value(gpu)).sum();
        rooms + GAPS * gaps - FULLNESS * self.emptiness(node)
    }

    /// How much is free, against the largest nodes.
    fn emptiness(&self, node: &NodeRoom) -> f64 {
        let gpus: u32 = node.gpus().iter().map(|gpu| u32::from(gpu.free_milli())).sum();
        let gpus = f64::from(gpus) / (1000 * self.largest_gpus.max(1)) as f64;
        node.host().cpu_milli as f64 / self.largest_cpu.max(1) as f64 + gpus
    }

    fn gap_value(&self, gpu: &GpuRoom) -> f64 {
        let table = self.table(gpu).filter(|_| gpu.kind().healthy);
        table.map_or(0.0, |table| table.gaps.of(gpu.free_milli()))
    }

    fn table(&self, gpu: &GpuRoom) -> Option<&Table> {
        self.tables.iter().find(|table| table.serves(gpu))
    }

    /// Tells, for each class that has some, its room on the node: now, and for many.
    fn each_room(&self, node: &NodeRoom, mut tell: impl FnMut(usize, f64)) {
        for (table, rooms) in self.rooms(node) {
            for (at, (class, size)) in self.classes.iter().zip(&table.size_of).enumerate() {
                let Some(room) = rooms.get(usize::from(*size)) else { continue };
                if room.gpus < class.gpus
                    || class.cpu_milli > node.host().cpu_milli
                    || class.memory > node.host().memory.get()
                {
                    continue;
                }
                tell(at, f64::from(room.free) + class.many(room, node));
            }
        }
    }

    /// For each kind of GPU that the node has, what there is for each size.
    fn rooms(&self, node: &NodeRoom) -> Vec<(&Table, Vec<Room>)> {
        let mut found: Vec<(&Table, Vec<Room>)> = Vec::with_capacity(1);
        for gpu in node.gpus().iter().filter(|gpu| gpu.kind().healthy) {
            let free = u32::from(gpu.free_milli());
            let at = found.iter().position(|(table, _)| table.serves(gpu));
            let at = match (at, self.table(gpu)) {
                (Some(at), _) => at,
                (None, None) => continue,
                (None, Some(table)) => {
                    let empty = |size: &u16| Room { size: u32::from(*size), ..Room::default() };
                    found.push((table, table.sizes.iter().map(empty).collect()));
                    found.len() - 1
                }
            };
            let Some((_, rooms)) = found.get_mut(at) else { continue };
            // Sizes ascend: what is too large once is so from there on.
            for room in rooms.iter_mut().take_while(|room| room.size <= free) {
                room.gpus += 1;
                room.free += free;
                room.pieces += free / room.size;
            }
        }
        found
    }
}

impl Class {
    /// Thousandths that as many of the class as fit would use.
    fn many(&self, room: &Room, node: &NodeRoom) -> f64 {
        let of = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
        let copies = u64::from(room.pieces / self.gpus.max(1))
            .min(of(node.host().cpu_milli, self.cpu_milli))
            .min(of(node.host().memory.get(), self.memory));
        copies as f64 * f64::from(self.gpus * room.size)
    }
}

impl Table {
    fn new(of: &GpuRoom, classes: &[MixClass]) -> Self {
        let of = GpuRoom::empty(*of.kind());
        let need = |class: &MixClass| {
            class.gpu().map_or(NEVER, |demand| {
                let (memory, share) = demand.amount.on(&of);
                let part = of.less(memory, share).filter(|_| demand.suits(&of));
                // Rounded up, as what is free is rounded down.
                part.map_or(NEVER, |left| (1000 - left.free_milli()).max(1))
            })
        };
        let needs: Vec<u16> = classes.iter().map(need).collect();
        let mut sizes: Vec<u16> = needs.iter().copied().filter(|need| *need < NEVER).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let place = |need: &u16| match sizes.binary_search(need) {
            Ok(at) => u16::try_from(at).unwrap_or(NEVER),
            Err(_) => NEVER,
        };
        let size_of = needs.iter().map(place).collect();
        let gaps = GapValues::new(&sizes);
        Self { of, sizes, size_of, gaps }
    }

    fn serves(&self, gpu: &GpuRoom) -> bool {
        let (own, other) = (self.of.kind(), gpu.kind());
        own.model == other.model && own.memory == other.memory && own.exposure == other.exposure
    }
}
