//! Who is connected, and what the lease looks like from outside: the answer to a tenant's NVML.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::DeviceAttribute as A;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::stats::Monotonic;
use gpuzone_wire::view::{GpuView, ProcessView, View, most_processes};

use crate::account::Account;
use crate::busy::BusyClock;
use crate::session::Lease;

/// Over how much time work is measured.
const WINDOW: u64 = 1_000_000_000;
/// Looks at the counters that lie closer together say no more.
const APART: u64 = 100_000_000;

/// Time worked, at moments of the last second.
#[derive(Debug, Default)]
struct Load {
    seen: VecDeque<(Monotonic, u64)>,
}

impl Load {
    /// Notes that `busy` nanoseconds were worked until `now`.
    fn note(&mut self, now: Monotonic, busy: u64) {
        if self.seen.back().is_some_and(|(last, _)| now.nanoseconds_since(*last) < APART) {
            return;
        }
        self.seen.push_back((now, busy));
        // The one that the window begins in stays.
        while self.seen.get(1).is_some_and(|(next, _)| now.nanoseconds_since(*next) >= WINDOW) {
            self.seen.pop_front();
        }
    }

    /// Per cent of the time since the window began; `None` when it began just now.
    fn percent(&self, now: Monotonic, busy: u64) -> Option<u32> {
        let (since, before) = self.seen.front()?;
        let passed = now.nanoseconds_since(*since);
        let worked = busy.saturating_sub(*before);
        let percent = (u128::from(worked) * 100).checked_div(u128::from(passed))?;
        u32::try_from(percent.min(100)).ok()
    }
}

/// The loads of all GPUs.
#[derive(Debug, Default)]
struct Loads(Vec<Load>);

impl Loads {
    /// Notes how many nanoseconds each GPU worked until `now`.
    fn note(&mut self, now: Monotonic, busy: &[u64]) {
        self.0.resize_with(busy.len(), Load::default);
        self.0.iter_mut().zip(busy).for_each(|(load, busy)| load.note(now, *busy));
    }

    fn percent(&self, now: Monotonic, busy: &[u64]) -> Vec<Option<u32>> {
        let each = busy.iter().enumerate();
        each.map(|(gpu, busy)| self.0.get(gpu)?.percent(now, *busy)).collect()
    }
}

/// A connected process.
#[derive(Debug)]
struct Member {
    number: u64,
    pid: u32,
    account: Arc<Account>,
    clock: Arc<BusyClock>,
    loads: Loads,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    members: Vec<Member>,
    loads: Loads,
}

/// The connected processes of a lease.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<State>);

/// A place in the roster, while it is held.
pub(crate) struct Place<'a> {
    roster: &'a Roster,
    number: u64,
}

impl Roster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a process is connected, until the place is dropped.
    pub(crate) fn enter(
        &self,
        pid: u32,
        account: Arc<Account>,
        clock: Arc<BusyClock>,
    ) -> Place<'_> {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        let mut loads = Loads::default();
        loads.note(Monotonic::now(), &clock.of_each());
        state.members.push(Member { number, pid, account, clock, loads });
        Place { roster: self, number }
    }

    /// To be called now and then, so that there is a second to look back on.
    pub(crate) fn note(&self, now: Monotonic, busy: &[u64]) {
        let mut state = self.state();
        state.loads.note(now, busy);
        for member in &mut state.members {
            member.loads.note(now, &member.clock.of_each());
        }
    }

    /// The lease as it is at `now`.
    pub(crate) fn view(&self, lease: &Lease, now: Monotonic) -> View {
        let state = self.state();
        for member in &state.members {
            member.clock.tick(now);
        }
        let busy = state.loads.percent(now, &lease.worked.of_each());
        let gpu = |(index, device): (usize, &crate::driver::Device)| {
            let (free, total) = lease.ledger.free_and_total(index);
            GpuView {
                used: total.saturating_sub(free),
                busy: busy.get(index).copied().flatten(),
                ..described(&device.info)
            }
        };
        let process = |member: &Member| ProcessView {
            pid: member.pid,
            used: member.account.bytes(),
            busy: member.loads.percent(now, &member.clock.of_each()),
        };
        let versions = lease.own_use.versions();
        let most = most_processes(lease.devices.len());
        View {
            driver: versions.driver,
            nvml: versions.nvml,
            cuda: lease.driver_version,
            gpus: lease.devices.iter().enumerate().map(gpu).collect(),
            processes: state.members.iter().take(most).map(process).collect(),
        }
    }
}

/// What of a GPU never changes.
fn described(info: &DeviceInfo) -> GpuView {
    let attribute = |attribute: A| {
        info.attributes.iter().find(|(number, _)| *number == attribute.0).map(|(_, value)| *value)
    };
    let part = |attribute_of: A| attribute(attribute_of).and_then(|part| u32::try_from(part).ok());
    let pci = || Some((part(A::PCI_DOMAIN_ID)?, part(A::PCI_BUS_ID)?, part(A::PCI_DEVICE_ID)?));
    let major = attribute(A::COMPUTE_CAPABILITY_MAJOR);
    GpuView {
        name: info.name.clone(),
        uuid: info.uuid,
        memory: info.memory,
        capability: major.zip(attribute(A::COMPUTE_CAPABILITY_MINOR)),
        pci: pci(),
        ..GpuView::default()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.roster.state().members.retain(|member| member.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_wire::stats::{StatsFile, StatsWriter};

    use super::*;
    use crate::busy::Worked;

    const fn at(milliseconds: u64) -> Monotonic {
        Monotonic::from_nanoseconds(milliseconds * 1_000_000)
    }

    #[test]
    fn load_is_that_of_the_last_second() {
        let mut load = Load::default();
        assert_eq!(load.percent(at(0), 0), None, "nothing is known yet");
        load.note(at(0), 0);
        assert_eq!(load.percent(at(0), 0), None, "no time has passed");
        assert_eq!(load.percent(at(500), 250_000_000), Some(50));
        // Busy for two seconds, then idle.
        for tenth in 1..=20 {
            load.note(at(tenth * 100), tenth * 100_000_000);
        }
        assert_eq!(load.percent(at(2000), 2_000_000_000), Some(100));
        for tenth in 21..=40 {
            load.note(at(tenth * 100), 2_000_000_000);
        }
        assert_eq!(load.percent(at(4000), 2_000_000_000), Some(0));
        assert!(load.seen.len() <= 12, "{}", load.seen.len());
        // Counted ahead of time, as the host's clock does.
        assert_eq!(load.percent(at(4001), 9_000_000_000), Some(100));
    }

    #[test]
    fn who_left_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let stats = StatsFile::create(&dir.path().join("stats")).unwrap();
        let stats = StatsWriter::open(stats.file().try_clone().unwrap()).unwrap();
        let worked = Arc::new(Worked::new(Arc::new(stats), 1));
        let roster = Roster::default();
        let enter = || roster.enter(7, Account::new(1), Arc::new(BusyClock::new(worked.clone())));
        let (first, second) = (enter(), enter());
        drop(first);
        assert_eq!(roster.state().members.len(), 1, "two of one number are two");
        drop(second);
        assert!(roster.state().members.is_empty());
    }
}
