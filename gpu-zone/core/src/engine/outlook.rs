//! What a node's free room is worth to the pods that are likely to come.
//!
//! For each class `m` of them, a node has *room now* (what is free on GPUs that could take one
//! more) and *room for many* (what as many as fit would use). Both are 0 on a node that lacks the
//! processors, so GPUs that cannot be used for want of CPU are worth nothing. A class counts by
//! its frequency and, squared, by how scarce its room is in the whole cluster.

use super::gaps::GapValues;
use super::{GpuRoom, HostRoom, MixClass, NodeRoom};

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
    /// The distinct amounts, smallest first.
    sizes: Vec<Size>,
    /// For 0 to 1000 thousandths, how many of `sizes` are no larger.
    fitting: Vec<u16>,
    /// For each class, its amount's place in `sizes`.
    size_of: Vec<u16>,
    gaps: GapValues,
}

/// An amount of a GPU, in thousandths: 1 to 1000.
#[derive(Clone, Copy, Debug)]
struct Size {
    milli: u32,
    /// `2^20 / milli`, rounded up.
    inverse: u32,
}

impl Size {
    const fn new(milli: u16) -> Self {
        let milli = if milli == 0 { 1 } else { milli as u32 };
        Self { milli, inverse: (1_u32 << 20).div_ceil(milli) }
    }

    /// How often it is in `free`, at most 1000: `free / milli`, without the division. Rounding up
    /// adds less than `free / 2^20`, which is below the `1 / milli` that a quotient may lack.
    const fn pieces(self, free: u32) -> u32 {
        (free * self.inverse) >> 20
    }
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
}

/// The GPUs of a node, counted for each size, to ask what the node is worth when one of them
/// changes: only that one is counted anew.
#[derive(Clone, Debug)]
pub(super) struct Gauge<'a> {
    outlook: &'a Outlook,
    host: HostRoom,
    gpus: Vec<GpuRoom>,
    /// For each class, how many the host has room for.
    copies: Vec<u32>,
    kinds: Vec<(&'a Table, Vec<Room>)>,
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
            self.gauge(node.host(), node.gpus()).each_room(|at, room| {
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
        self.gauge(node.host(), node.gpus()).worth()
    }

    /// A gauge of a node of these.
    pub(super) fn gauge(&self, host: HostRoom, gpus: &[GpuRoom]) -> Gauge<'_> {
        let (copies, kinds) = (Vec::with_capacity(self.classes.len()), Vec::with_capacity(1));
        let mut gauge = Gauge { outlook: self, host, gpus: gpus.to_vec(), copies, kinds };
        gauge.move_to(host);
        for gpu in gpus.iter().filter(|gpu| gpu.kind().healthy) {
            if gauge.kinds.iter().all(|(table, _)| !table.serves(gpu))
                && let Some(table) = self.table(gpu)
            {
                gauge.kinds.push((table, vec![Room::default(); table.sizes.len()]));
            }
            gauge.count(gpu, Room::add);
        }
        gauge
    }

    fn table(&self, gpu: &GpuRoom) -> Option<&Table> {
        self.tables.iter().find(|table| table.serves(gpu))
    }
}

impl Room {
    fn add(&mut self, free: u32, pieces: u32) {
        self.gpus += 1;
        self.free += free;
        self.pieces += pieces;
    }

    fn remove(&mut self, free: u32, pieces: u32) {
        self.gpus -= 1;
        self.free -= free;
        self.pieces -= pieces;
    }
}

impl Gauge<'_> {
    fn count(&mut self, gpu: &GpuRoom, how: impl Fn(&mut Room, u32, u32)) {
        let of = self.kinds.iter_mut().find(|(table, _)| table.serves(gpu));
        let Some((table, rooms)) = of.filter(|_| gpu.kind().healthy) else { return };
        let free = u32::from(gpu.free_milli());
        let fitting = table.fitting.get(usize::from(gpu.free_milli())).copied().unwrap_or(0);
        for (size, room) in table.sizes.iter().zip(rooms).take(usize::from(fitting)) {
            how(room, free, size.pieces(free));
        }
    }

    /// The same GPUs on a host with this room.
    pub(super) fn move_to(&mut self, host: HostRoom) {
        self.host = host;
        let (cpu, memory) = (host.cpu_milli as f64, host.memory.get() as f64);
        // A quotient of whole numbers below 2^53 is never rounded up to the next whole one, and
        // this division is the fastest.
        let of = |have: f64, each: u64| if each == 0 { f64::MAX } else { have / each as f64 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let copies = |class: &Class| of(cpu, class.cpu_milli).min(of(memory, class.memory)) as u32;
        self.copies.clear();
        self.copies.extend(self.outlook.classes.iter().map(copies));
    }

    /// What the node is worth with `after`, which is of the same kind, in the place of GPU `at`.
    pub(super) fn worth_with(&mut self, at: usize, after: &GpuRoom) -> f64 {
        let Some(before) = self.gpus.get(at).copied() else { return self.worth() };
        self.change(at, &before, after);
        let worth = self.worth();
        self.change(at, after, &before);
        worth
    }

    fn change(&mut self, at: usize, from: &GpuRoom, to: &GpuRoom) {
        self.count(from, Room::remove);
        self.count(to, Room::add);
        if let Some(gpu) = self.gpus.get_mut(at) {
            *gpu = *to;
        }
    }

    /// What the node is worth.
    pub(super) fn worth(&self) -> f64 {
        let mut rooms = 0.0;
        self.each_room(|at, room| {
            rooms += self.outlook.classes.get(at).map_or(0.0, |class| class.weight * room);
        });
        let gaps: f64 = self.gpus.iter().map(|gpu| self.gap_value(gpu)).sum();
        rooms + GAPS * gaps - FULLNESS * self.emptiness()
    }

    /// How much is free, against the largest nodes.
    fn emptiness(&self) -> f64 {
        let outlook = self.outlook;
        let gpus: u32 = self.gpus.iter().map(|gpu| u32::from(gpu.free_milli())).sum();
        let gpus = f64::from(gpus) / (1000 * outlook.largest_gpus.max(1)) as f64;
        self.host.cpu_milli as f64 / outlook.largest_cpu.max(1) as f64 + gpus
    }

    fn gap_value(&self, gpu: &GpuRoom) -> f64 {
        let of = self.kinds.iter().find(|(table, _)| table.serves(gpu));
        of.filter(|_| gpu.kind().healthy).map_or(0.0, |(table, _)| table.gaps.of(gpu.free_milli()))
    }

    /// Tells, for each class that has some, its room on the node: now, and for many.
    fn each_room(&self, mut tell: impl FnMut(usize, f64)) {
        for (table, rooms) in &self.kinds {
            let classes = self.outlook.classes.iter().zip(&self.copies).zip(&table.size_of);
            for (at, ((class, copies), size)) in classes.enumerate() {
                let place = usize::from(*size);
                let (Some(room), Some(size)) = (rooms.get(place), table.sizes.get(place)) else {
                    continue;
                };
                if room.gpus < class.gpus || *copies == 0 {
                    continue;
                }
                // What as many as fit would use.
                let most = if class.gpus > 1 { room.pieces / class.gpus } else { room.pieces };
                let many = f64::from(most.min(*copies)) * f64::from(class.gpus * size.milli);
                tell(at, f64::from(room.free) + many);
            }
        }
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
        let no_larger = |free: u16| sizes.partition_point(|size| *size <= free);
        let fitting = (0..=1000).map(|free| u16::try_from(no_larger(free)).unwrap_or(NEVER));
        let fitting = fitting.collect();
        let sizes = sizes.into_iter().map(Size::new).collect();
        Self { of, sizes, fitting, size_of, gaps }
    }

    fn serves(&self, gpu: &GpuRoom) -> bool {
        let (own, other) = (self.of.kind(), gpu.kind());
        own.model == other.model && own.memory == other.memory && own.exposure == other.exposure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_quotient() {
        for milli in 1..=1000 {
            let size = Size::new(milli);
            assert!((0..=1000).all(|free| size.pieces(free) == free / u32::from(milli)), "{milli}");
        }
    }
}
