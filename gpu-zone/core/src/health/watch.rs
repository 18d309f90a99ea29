use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cause::{Policy, Settling};
use super::{Cause, GpuHealth, HealthTerms, Level, Signal, Xid, XidClass};
use crate::Timestamp;

/// More kinds of errors than that are not told apart among those that are only noted.
const NOTED_KINDS: usize = 32;
/// A reason is not longer, in bytes: it is written down and shown in many places.
const LONGEST_DETAIL: usize = 400;
/// More times than that do not make a trouble wait longer.
const MOST_STRIKES: usize = 8;
/// Errors of a kind that come closer together than that are one.
const APART: Duration = Duration::from_secs(60);

/// What is known of one GPU's health. What outlives the agent is what serialises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuWatch {
    /// At most one of a cause, in the order in which they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    faults: Vec<Fault>,
    /// When causes that come and go came, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    strikes: Vec<Strike>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovered: Option<Recovered>,
    #[serde(skip)]
    noted: BTreeMap<Xid, Noted>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    cause: Cause,
    detail: String,
    since: Timestamp,
    hold: Hold,
}

/// Where a fault is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hold {
    /// It is there, and may be over in a moment: it counts for nothing yet.
    Doubtful,
    /// It is there.
    Bad,
    /// It is away since then.
    Settling(Timestamp),
    /// It stays until an operator clears it.
    Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Strike {
    cause: Cause,
    at: Timestamp,
}

/// When a GPU last began to serve again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovered {
    /// When.
    pub at: Timestamp,
    /// From what.
    pub from: String,
}

/// An error that was noted and changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// How often, since the agent began.
    pub count: u64,
    /// When last.
    pub last: Timestamp,
}

fn bounded(text: &str) -> String {
    let end = (0..=LONGEST_DETAIL.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

fn passed(since: Timestamp, now: Timestamp, time: Duration) -> bool {
    u128::from(now.nanoseconds_since(since)) >= time.as_nanos()
}

impl GpuWatch {
    /// One that has been condemned for what a scrub said.
    pub fn condemned(reason: &str, at: Timestamp) -> Self {
        let mut watch = Self::default();
        watch.condemn(Cause::Scrub, reason, at);
        watch
    }

    /// Takes in what was seen; whether something changed that has to outlive the agent.
    pub fn observe(&mut self, signal: &Signal, now: Timestamp, terms: &HealthTerms) -> bool {
        self.changing(now, |watch| match signal {
            Signal::Xid(xid, count) => watch.xid(*xid, *count, now, terms),
            Signal::UncorrectableEcc => watch.condemn(Cause::Ecc, "", now),
            Signal::RemapFailed => watch.condemn(Cause::Remap, "", now),
            Signal::Lost => watch.condemn(Cause::Lost, "", now),
            Signal::ScrubFailed(reason) => watch.condemn(Cause::Scrub, reason, now),
            Signal::Trouble(level, why) => watch.trouble(*level, why, now, terms),
            Signal::Well(level) => watch.well(*level, now, terms),
        })
    }

    /// Lets time go on; whether something changed that has to outlive the agent.
    pub fn pass(&mut self, now: Timestamp, terms: &HealthTerms) -> bool {
        self.changing(now, |watch| {
            let strikes = watch.strikes.clone();
            // A level is over when somebody looked and it was well.
            watch.faults.retain(|fault| {
                matches!(fault.cause, Cause::Level(_)) || !is_over(fault, &strikes, now, terms)
            });
        })
    }

    /// An operator says that it is well. What is still there is there.
    pub fn clear(&mut self, now: Timestamp) -> bool {
        self.changing(now, |watch| {
            watch.faults.retain(|fault| match fault.hold {
                Hold::Doubtful | Hold::Bad => true,
                Hold::Settling(_) | Hold::Operator => false,
            });
            watch.strikes.clear();
        })
    }

    /// Does something, notes a recovery, and says whether what is to be kept is another.
    fn changing(&mut self, now: Timestamp, change: impl FnOnce(&mut Self)) -> bool {
        let before = self.kept();
        let health = self.health();
        change(self);
        if let (Some((_, from)), GpuHealth::Healthy) = (health.why(), self.health()) {
            self.recovered = Some(Recovered { at: now, from: bounded(from) });
        }
        before != self.kept()
    }

    /// What has to outlive the agent. What is doubtful is looked at again.
    fn kept(&self) -> (Vec<Fault>, Vec<Strike>, Option<Recovered>) {
        let sure = self.faults.iter().filter(|fault| fault.hold != Hold::Doubtful);
        (sure.cloned().collect(), self.strikes.clone(), self.recovered.clone())
    }

    fn find(&mut self, cause: Cause) -> Option<&mut Fault> {
        self.faults.iter_mut().find(|fault| fault.cause == cause)
    }

    fn condemn(&mut self, cause: Cause, detail: &str, now: Timestamp) {
        match self.find(cause) {
            // The first reason stands: later ones follow from it.
            Some(fault) => fault.hold = Hold::Operator,
            None => {
                let detail = bounded(detail);
                self.faults.push(Fault { cause, detail, since: now, hold: Hold::Operator });
            }
        }
    }

    fn xid(&mut self, xid: Xid, count: u64, now: Timestamp, terms: &HealthTerms) {
        let class = if terms.noted.contains(&xid) { XidClass::Application } else { xid.class() };
        self.note(xid, count, now);
        match class {
            XidClass::Application | XidClass::Notice => {}
            XidClass::Device => self.condemn(Cause::Xid(xid), "", now),
            XidClass::Contained => self.count(Cause::Contained, "", now, terms),
            XidClass::Unknown => self.count(Cause::UnknownXid, &xid.to_string(), now, terms),
        }
    }

    fn note(&mut self, xid: Xid, count: u64, now: Timestamp) {
        if self.noted.len() >= NOTED_KINDS && !self.noted.contains_key(&xid) {
            return;
        }
        let noted = self.noted.entry(xid).or_insert(Noted { count: 0, last: now });
        noted.count = noted.count.saturating_add(count);
        noted.last = now;
    }

    /// Something that happened and was over.
    fn count(&mut self, cause: Cause, detail: &str, now: Timestamp, terms: &HealthTerms) {
        if self.find(cause).is_some_and(|fault| fault.hold == Hold::Operator) {
            return;
        }
        // One fault is reported for each program that it hits.
        if strikes_of(&self.strikes, cause, now, APART) == 0 {
            self.strike(cause, now);
        }
        let often = strikes_of(&self.strikes, cause, now, HealthTerms::DAY);
        let too_often = often >= HealthTerms::ESCALATES_AT;
        match cause.policy(terms) {
            Policy::Condemns => self.condemn(cause, detail, now),
            Policy::Counts if too_often => self.condemn(cause, detail, now),
            Policy::Counts => {}
            Policy::Settles(settling) if settling.escalates && too_often => {
                self.condemn(cause, detail, now);
            }
            Policy::Settles(_) => self.settle(cause, detail, now),
        }
    }

    fn settle(&mut self, cause: Cause, detail: &str, now: Timestamp) {
        let (detail, hold) = (bounded(detail), Hold::Settling(now));
        match self.find(cause) {
            Some(fault) => (fault.detail, fault.hold) = (detail, hold),
            None => self.faults.push(Fault { cause, detail, since: now, hold }),
        }
    }

    fn strike(&mut self, cause: Cause, now: Timestamp) {
        self.strikes.retain(|strike| !passed(strike.at, now, HealthTerms::DAY));
        let of_cause = self.strikes.iter().filter(|strike| strike.cause == cause).count();
        if of_cause >= MOST_STRIKES
            && let Some(oldest) = self.strikes.iter().position(|strike| strike.cause == cause)
        {
            self.strikes.remove(oldest);
        }
        self.strikes.push(Strike { cause, at: now });
    }

    fn trouble(&mut self, level: Level, why: &str, now: Timestamp, terms: &HealthTerms) {
        let cause = Cause::Level(level);
        let grace = match cause.policy(terms) {
            Policy::Settles(Settling { grace, .. }) => grace,
            Policy::Condemns | Policy::Counts => Duration::ZERO,
        };
        let Some(fault) = self.find(cause) else {
            let hold = if grace.is_zero() { Hold::Bad } else { Hold::Doubtful };
            self.faults.push(Fault { cause, detail: bounded(why), since: now, hold });
            if hold == Hold::Bad {
                self.strike(cause, now);
            }
            return;
        };
        match fault.hold {
            Hold::Doubtful if passed(fault.since, now, grace) => {}
            // It was here a moment ago: no grace.
            Hold::Settling(_) => {}
            Hold::Doubtful | Hold::Bad | Hold::Operator => return,
        }
        fault.hold = Hold::Bad;
        fault.detail = bounded(why);
        self.strike(cause, now);
    }

    fn well(&mut self, level: Level, now: Timestamp, terms: &HealthTerms) {
        let cause = Cause::Level(level);
        let strikes = self.strikes.clone();
        let Some(fault) = self.find(cause) else { return };
        match fault.hold {
            Hold::Bad => fault.hold = Hold::Settling(now),
            Hold::Doubtful => self.faults.retain(|fault| fault.cause != cause),
            Hold::Settling(_) => {
                let over = is_over(fault, &strikes, now, terms);
                self.faults.retain(|fault| fault.cause != cause || !over);
            }
            Hold::Operator => {}
        }
    }

    /// What the GPU is.
    pub fn health(&self) -> GpuHealth {
        let first = |wanted: fn(Hold) -> bool| {
            let found = self.faults.iter().find(|fault| wanted(fault.hold))?;
            let others = self.faults.iter().filter(|fault| wanted(fault.hold)).count() - 1;
            let also = match others {
                0 => String::new(),
                count => format!(" (and {count} more)"),
            };
            let back = match found.hold {
                Hold::Settling(_) => ". That is over, and it serves again if it stays so",
                Hold::Doubtful | Hold::Bad | Hold::Operator => "",
            };
            Some((found.cause, format!("{}{back}{also}", found.cause.sentence(&found.detail))))
        };
        let out = |hold| matches!(hold, Hold::Bad | Hold::Settling(_));
        match (first(|hold| hold == Hold::Operator), first(out)) {
            (Some((cause, reason)), _) => GpuHealth::Quarantined { cause, reason },
            (None, Some((cause, reason))) => GpuHealth::Suspended { cause, reason },
            (None, None) => GpuHealth::Healthy,
        }
    }

    /// When it last stopped to serve, if it does not.
    pub fn since(&self) -> Option<Timestamp> {
        let out = self.faults.iter().filter(|fault| fault.hold != Hold::Doubtful);
        out.map(|fault| fault.since).min()
    }

    /// When it last began to serve again.
    pub fn recovered(&self) -> Option<&Recovered> {
        self.recovered.as_ref()
    }

    /// Errors that the driver reported since the agent began.
    pub fn noted(&self) -> &BTreeMap<Xid, Noted> {
        &self.noted
    }

    /// Whether there is nothing that a later one has to know.
    pub fn is_blank(&self) -> bool {
        self.kept() == Self::default().kept()
    }
}

fn strikes_of(strikes: &[Strike], cause: Cause, now: Timestamp, within: Duration) -> usize {
    let of_cause = strikes.iter().filter(|strike| strike.cause == cause);
    of_cause.filter(|strike| !passed(strike.at, now, within)).count()
}

/// Whether a fault was away for long enough.
fn is_over(fault: &Fault, strikes: &[Strike], now: Timestamp, terms: &HealthTerms) -> bool {
    let (Hold::Settling(since), Policy::Settles(settling)) =
        (fault.hold, fault.cause.policy(terms))
    else {
        return false;
    };
    let times = strikes_of(strikes, fault.cause, now, HealthTerms::SOON.max(settling.most));
    let doubled = u32::try_from(times.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let settle = settling.settle.saturating_mul(1 << doubled).min(settling.most);
    passed(since, now, settle)
}

#[cfg(test)]
mod tests;
