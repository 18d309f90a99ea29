//! How far a node is from serving a pod, in numbers, for people. [`super::Reason`] has none, so that a
//! scheduler groups equal ones.

use std::cmp::Reverse;
use std::fmt;

use crate::{Exposure, MemoryBytes};

use super::fit::{STEPS, passed, why_not};
use super::{Demand, GpuRoom, NodeRoom, PodDemand, Reason, ShareMilli};

/// What a node lacks for one container of a pod: that which lacks most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What stands in the way first.
    pub reason: Reason,
    /// How many GPUs the container asks for.
    wanted: u32,
    /// How many there are that could serve it if nothing stood in the way.
    of: usize,
    figure: Figure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    /// So many would do.
    Count(usize),
    /// Asked of each, and what as many as are wanted have.
    Memory { asked: MemoryBytes, best: MemoryBytes },
    /// The same of their time.
    Share { asked: ShareMilli, best: ShareMilli },
}

impl Lack {
    /// How much of what is asked is there, in thousandths: the nearer the more.
    pub fn nearness(&self) -> u64 {
        let part = |have: u64, asked: u64| {
            let part = u128::from(have.min(asked)) * 1000 / u128::from(asked.max(1));
            u64::try_from(part).unwrap_or(1000)
        };
        match self.figure {
            Figure::Count(have) => part(have as u64, self.wanted.into()),
            Figure::Memory { asked, best } => part(best.get(), asked.get()),
            Figure::Share { asked, best } => part(best.get().into(), asked.get().into()),
        }
    }

    /// Less that the container could ask for, in words: it would find that much.
    pub fn instead(&self) -> Option<String> {
        match (self.figure, self.reason) {
            (Figure::Memory { best, .. }, Reason::TooSmall | Reason::GpuMemory)
                if !best.is_zero() =>
            {
                Some(format!("{} of memory", rounded(best)))
            }
            (Figure::Share { best, .. }, _) if best.get() >= 10 => {
                Some(format!("{}% of the time", best.get() / 10))
            }
            (Figure::Count(have), Reason::TooFew) if have > 0 => Some(format!("{have} GPUs")),
            (Figure::Count(_) | Figure::Memory { .. } | Figure::Share { .. }, _) => None,
        }
    }
}

/// In whole MiB, as a container asks for it.
fn rounded(memory: MemoryBytes) -> MemoryBytes {
    MemoryBytes::saturating(memory.get() >> 20 << 20)
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, of) = (self.wanted, self.of);
        let gpus =
            if wanted == 1 { "one GPU".to_owned() } else { format!("each of {wanted} GPUs") };
        let best = match wanted {
            1 => format!("the best of {of} has"),
            _ => format!("the best {wanted} of {of} have no more than"),
        };
        match (self.figure, self.reason) {
            (Figure::Count(have), reason) => {
                let what = match reason {
                    Reason::Model => "of a model that was asked for",
                    Reason::Exposure => "handed over as it was asked for",
                    Reason::Unhealthy => "well",
                    Reason::GpuMemory => "free",
                    _ => "there",
                };
                let are = if have == 1 { "is" } else { "are" };
                write!(f, "needs {wanted}: {have} of {of} {are} {what}")
            }
            (Figure::Memory { asked, best: has }, Reason::TooSmall) => {
                write!(f, "needs {asked} on {gpus}: {best} {}, even when empty", rounded(has))
            }
            (Figure::Memory { asked, best: has }, _) => {
                write!(f, "needs {asked} on {gpus}: {best} {} free", rounded(has))
            }
            (Figure::Share { asked, best: has }, _) => {
                let percent = |share: ShareMilli| share.get() / 10;
                let (asked, has) = (percent(asked), percent(has));
                write!(f, "needs {asked}% of the time of {gpus}: {best} {has}% free")
            }
        }
    }
}

/// What a node lacks to serve `pod`; `None` when it serves it, or lacks what has no number.
pub fn lack(node: &NodeRoom, pod: &PodDemand) -> Option<Lack> {
    let lacks = pod.containers.iter().filter_map(|demand| {
        let reason = why_not(node.gpus(), demand)?;
        Some((reason, of_container(node.gpus(), demand, reason)?))
    });
    lacks.min_by_key(|(reason, _)| *reason).map(|(_, lack)| lack)
}

fn of_container(gpus: &[GpuRoom], demand: &Demand, reason: Reason) -> Option<Lack> {
    let step = STEPS.iter().position(|step| *step == reason)?;
    let wanted = demand.gpus.get();
    // Who passes all that is asked before.
    let left: Vec<&GpuRoom> = gpus.iter().filter(|gpu| passed(gpu, demand) >= step).collect();
    let of = if step == 0 { wanted as usize } else { left.len() };
    let enough = left.iter().filter(|gpu| passed(gpu, demand) > step).count();
    let part = matches!(demand.exposure, Exposure::Mig | Exposure::Vgpu);
    let figure = match reason {
        Reason::TooSmall if !part => memory(&left, demand, |gpu| gpu.kind().memory)?,
        Reason::GpuMemory if !part => memory(&left, demand, GpuRoom::free_memory)?,
        Reason::GpuShare if !part => {
            let gpu = nth(&left, wanted, |gpu| gpu.free_share())?;
            Figure::Share { asked: demand.amount.on(gpu).1, best: gpu.free_share() }
        }
        Reason::TooFew => Figure::Count(gpus.len()),
        Reason::Model
        | Reason::Exposure
        | Reason::Unhealthy
        | Reason::TooSmall
        | Reason::GpuMemory
        | Reason::GpuShare => Figure::Count(enough),
        Reason::NoGpu
        | Reason::HostCpu
        | Reason::HostMemory
        | Reason::Topology
        | Reason::GpuRoom
        | Reason::Together => return None,
    };
    Some(Lack { reason, wanted, of, figure })
}

fn memory(
    gpus: &[&GpuRoom],
    demand: &Demand,
    of: impl Fn(&GpuRoom) -> MemoryBytes,
) -> Option<Figure> {
    let gpu = nth(gpus, demand.gpus.get(), &of)?;
    Some(Figure::Memory { asked: demand.amount.on(gpu).0, best: of(gpu) })
}

/// Of the best `wanted` that which has least.
fn nth<'a, T: Ord>(
    gpus: &[&'a GpuRoom],
    wanted: u32,
    of: impl Fn(&GpuRoom) -> T,
) -> Option<&'a GpuRoom> {
    let mut sorted = gpus.to_vec();
    sorted.sort_by_key(|gpu| Reverse(of(gpu)));
    sorted.get((wanted as usize).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Amount, GpuKind, HostDemand, HostRoom, MemoryAsk, ModelTable, fit};
    use crate::{ComputeShare, GpuCount};
    use proptest::prelude::*;

    fn node(free: &[(u64, u16, bool)]) -> NodeRoom {
        let model = ModelTable::default().class_of("x").unwrap();
        let gpu = |(gib, milli, healthy): &(u64, u16, bool)| {
            let memory = MemoryBytes::gib(80);
            let exposure = Exposure::Mediated;
            let kind =
                GpuKind { memory, model, exposure, healthy: *healthy, numa: None, nvlink: None };
            let share = ShareMilli::new(*milli).unwrap();
            GpuRoom::with_free(kind, MemoryBytes::gib(*gib), share)
        };
        NodeRoom::new(HostRoom::default(), free.iter().map(gpu).collect()).unwrap()
    }

    fn pod(gpus: u32, gib: u64, percent: u32) -> PodDemand {
        let memory = MemoryAsk::Bytes(MemoryBytes::gib(gib));
        let share = ComputeShare::new(percent).ok().map(ShareMilli::from);
        let demand = Demand::new(GpuCount::new(gpus).unwrap(), Amount::Part { memory, share });
        PodDemand { host: HostDemand::default(), containers: vec![demand] }
    }

    #[test]
    fn it_says_how_much_is_missing() {
        let mut eight = vec![(16, 1000, true); 7];
        eight.push((8, 1000, true));
        let said = |free: &[(u64, u16, bool)], pod: &PodDemand| {
            lack(&node(free), pod).map(|lack| lack.to_string()).unwrap_or_default()
        };
        let one = "needs 24Gi on one GPU: the best of 8 has 16Gi free";
        assert_eq!(said(&eight, &pod(1, 24, 10)), one);
        let eighth = "needs 12Gi on each of 8 GPUs: the best 8 of 8 have no more than 8Gi free";
        assert_eq!(said(&eight, &pod(8, 12, 10)), eighth);
        let large = "needs 96Gi on one GPU: the best of 8 has 80Gi, even when empty";
        assert_eq!(said(&eight, &pod(1, 96, 10)), large);
        assert_eq!(said(&eight, &pod(9, 1, 10)), "needs 9: 8 of 9 are there");
        let sick = [(80, 1000, false), (80, 1000, true)];
        assert_eq!(said(&sick, &pod(2, 1, 10)), "needs 2: 1 of 2 is well");
        // One that has the memory has not the time.
        let busy = [(40, 200, true), (10, 1000, true)];
        let time = "needs 50% of the time of one GPU: the best of 1 has 20% free";
        assert_eq!(said(&busy, &pod(1, 20, 50)), time);
        assert_eq!(said(&eight, &pod(1, 16, 10)), "");
    }

    proptest! {
        /// What it says is missing is missing, and who asks for what it says instead has it.
        #[test]
        fn what_is_said_to_be_there_is(
            free in proptest::collection::vec((0u64..=80, 0u16..=100, any::<bool>()), 1..8),
            (gpus, gib, percent) in (1u32..5, 1u64..100, 1u32..=100),
        ) {
            let free: Vec<_> = free.into_iter().map(|(g, p, h)| (g, p * 10, h)).collect();
            let (node, asked) = (node(&free), pod(gpus, gib, percent));
            let lack = lack(&node, &asked);
            prop_assert_eq!(lack.map(|lack| lack.reason), fit(&node, &asked).err());
            let Some(lack) = lack else { return Ok(()) };
            prop_assert!(lack.nearness() < 1000);
            // Who asks for what is there instead gets past that.
            let less = match lack.figure {
                Figure::Memory { best, .. } if !best.is_zero() => pod(gpus, best.get() >> 30, 1),
                Figure::Share { best, .. } if best.get() >= 10 => {
                    pod(gpus, gib, u32::from(best.get() / 10))
                }
                Figure::Memory { .. } | Figure::Share { .. } | Figure::Count(_) => return Ok(()),
            };
            let next = fit(&node, &less).err();
            prop_assert!(next.is_none_or(|next| next > lack.reason), "{:?}, {:?}", lack, next);
        }
    }
}
