//! Tenants, workers and a GPU in simulated time, for the schedule's tests.

use uuid::Uuid;

use super::*;

pub(super) const MICROSECOND: u64 = 1_000;
pub(super) const MILLISECOND: u64 = 1_000 * MICROSECOND;
pub(super) const SECOND: u64 = 1_000 * MILLISECOND;

/// How long a worker keeps an idle turn that somebody waits for.
const GRACE: u64 = 300 * MICROSECOND;

pub(super) fn lease(n: usize) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(n as u128 + 1))
}

pub(super) fn share(percent: u32) -> ComputeShare {
    ComputeShare::new(percent).expect("a share")
}

/// A member that does one kernel after the other.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub(super) terms: Terms,
    /// Lengths of its kernels, in nanoseconds, again and again.
    kernels: Vec<u64>,
    /// Between a kernel's end and the next launch, again and again.
    pub(super) pauses: Vec<u64>,
    /// It wants nothing before and after.
    pub(super) active: std::ops::Range<u64>,
    pub(super) busy: u64,
    next: usize,
    /// When it wants its next launch.
    ready: u64,
    pub(super) waits: Vec<u64>,
    wanted: bool,
    /// What it had, each time that it was less than it had been due since the beginning.
    pub(super) lag: i64,
}

impl Tenant {
    pub(super) fn new(weight: u32, kernels: Vec<u64>, pause: u64) -> Self {
        let (cap, priority) = (None, Priority::Batch);
        Self {
            terms: Terms { weight: share(weight), cap, priority, patient: false },
            kernels,
            pauses: vec![pause],
            active: 0..u64::MAX,
            busy: 0,
            next: 0,
            ready: 0,
            waits: Vec::new(),
            wanted: false,
            lag: 0,
        }
    }

    pub(super) fn start_over(&mut self) {
        (self.busy, self.next, self.ready, self.lag) = (0, 0, 0, 0);
        self.waits.clear();
        self.wanted = false;
    }

    pub(super) fn longest(&self) -> u64 {
        self.kernels.iter().copied().max().unwrap_or_default()
    }

    fn kernel(&mut self) -> u64 {
        self.next += 1;
        self.kernels[(self.next - 1) % self.kernels.len()]
    }

    /// How long its worker keeps a turn for it: not for pauses that are always long.
    fn grace(&self) -> u64 {
        let mut pauses = self.pauses.clone();
        pauses.sort_unstable();
        if pauses[pauses.len() / 2] > GRACE { 0 } else { GRACE }
    }

    fn pause(&self) -> u64 {
        self.pauses[self.next % self.pauses.len()]
    }
}

/// Who has the GPU.
#[derive(Clone, Copy)]
struct Holder {
    who: usize,
    used: u64,
    recalled: bool,
    /// Until when a kernel of it runs.
    running: Option<u64>,
    idle_since: u64,
}

/// What happens until `end`; each tenant's busy time is in it after that.
pub(super) fn simulate(tenants: &mut [Tenant], end: u64) -> Schedule {
    let mut schedule = Schedule::new(FairTime::default());
    let at = Monotonic::from_nanoseconds;
    for (n, tenant) in tenants.iter_mut().enumerate() {
        tenant.ready = tenant.active.start;
        schedule.join(lease(n), tenant.terms, at(0));
    }
    let weights: u64 = tenants.iter().map(|t| u64::from(t.terms.weight.percent())).sum();
    let mut now = 0;
    let mut holder: Option<Holder> = None;
    while now < end {
        for (n, tenant) in tenants.iter_mut().enumerate() {
            let ready = tenant.ready <= now && tenant.active.contains(&now);
            let holds = holder.filter(|holder| holder.who == n);
            let served = holds.is_some_and(|holder| !holder.recalled || holder.running.is_some());
            if ready && !served && !tenant.wanted {
                tenant.wanted = true;
                schedule.want(lease(n), at(now));
            }
        }
        for action in schedule.poll(at(now)) {
            obey(action, tenants, &mut holder, now);
        }
        let mut moments: Vec<u64> = Vec::new();
        if let Some(mut held) = holder.take() {
            let tenant = &mut tenants[held.who];
            if held.running.is_some_and(|until| until <= now) {
                held.running = None;
                (held.idle_since, tenant.ready) = (now, now + tenant.pause());
                let due = now * u64::from(tenant.terms.weight.percent()) / weights;
                tenant.lag = tenant.lag.max(signed(due) - signed(tenant.busy));
            }
            let active = tenant.active.contains(&tenant.ready);
            if held.running.is_none() && !held.recalled && tenant.ready <= now && active {
                let length = tenant.kernel();
                tenant.busy += length;
                (held.running, held.used) = (Some(now + length), held.used + length);
            }
            let contended = schedule.others_want(lease(held.who));
            let over =
                held.recalled || !active || (contended && now >= held.idle_since + tenant.grace());
            if held.running.is_none() && over {
                schedule.yielded(lease(held.who), held.used, false, at(now));
                continue;
            }
            moments.extend(held.running);
            moments.push(held.idle_since + tenant.grace());
            holder = Some(held);
        }
        moments.extend(tenants.iter().filter(|t| !t.wanted).map(|t| t.ready));
        moments.extend(schedule.wake_at(at(now)).map(Monotonic::nanoseconds));
        let next = moments.into_iter().filter(|moment| *moment > now).min().unwrap_or(end);
        now = next.min(end).max(now + 1);
    }
    schedule
}

fn obey(action: Action, tenants: &mut [Tenant], holder: &mut Option<Holder>, now: u64) {
    match action {
        Action::Grant { lease: granted, .. } => {
            assert!(holder.is_none(), "two have the GPU");
            let who = (0..tenants.len()).find(|n| lease(*n) == granted).expect("known");
            let tenant = &mut tenants[who];
            assert!(tenant.wanted, "granted to one that does not want it");
            tenant.waits.push(now - tenant.ready);
            tenant.wanted = false;
            let (running, idle_since) = (None, now);
            *holder = Some(Holder { who, used: 0, recalled: false, running, idle_since });
        }
        Action::Recall { lease: recalled } => {
            let holder = holder.as_mut().expect("somebody has it");
            assert_eq!(lease(holder.who), recalled);
            holder.recalled = true;
        }
        Action::Contended { .. } | Action::Brief { .. } => {}
        Action::Overrun { .. } => panic!("kernels are shorter than the watchdog's limit"),
    }
}
