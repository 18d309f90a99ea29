//! Who leads, decided from what a Lease says.
//!
//! Nobody compares clocks with anybody: a Lease is over when it has not changed for its duration
//! by the clock of whoever watches it. Whoever holds it stops binding a good while before others
//! may think so.

use std::time::Duration;

use crate::index::Moment;

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; nobody when it was given back.
    pub holder: Option<String>,
    /// Changes with each write.
    pub version: String,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write it, and lead when that succeeds.
    Take,
    /// Another one leads.
    Wait,
}

/// One replica's view of the election.
#[derive(Clone, Debug)]
pub struct Election {
    me: String,
    duration: Duration,
    seen: Option<(Record, Moment)>,
    renewed: Option<Moment>,
}

impl Election {
    /// Of a replica that is called `me`.
    pub fn new(me: String, duration: Duration) -> Self {
        Self { me, duration, seen: None, renewed: None }
    }

    /// What to do about a Lease that says this; `None` is one that is not there.
    pub fn step(&mut self, record: Option<Record>, now: Moment) -> Step {
        let Some(record) = record else { return Step::Take };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        match record.holder {
            None => Step::Take,
            Some(holder) if holder == self.me => Step::Take,
            Some(_) if now.saturating_sub(since) > self.duration => Step::Take,
            Some(_) => Step::Wait,
        }
    }

    /// The Lease was written by this replica; the write began at `began`.
    pub fn wrote(&mut self, began: Moment) {
        self.renewed = Some(began);
    }

    /// Another one wrote it.
    pub fn lost(&mut self) {
        self.renewed = None;
    }

    /// Until when this replica may begin to bind pods: nobody else can think the Lease over by
    /// then, nor before a Binding that begins then has ended, which the API server sees to even when this
    /// replica is killed in the middle of it.
    pub fn leads_until(&self) -> Moment {
        self.renewed.map_or(Moment::ZERO, |renewed| renewed + self.duration / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: u32) -> Option<Record> {
        let holder = (!holder.is_empty()).then(|| holder.to_owned());
        Some(Record { holder, version: version.to_string() })
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_secs(seconds)
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_not_changed_for_its_duration() {
        let mut election = Election::new("me".into(), Duration::from_secs(10));
        assert_eq!(election.step(None, at(0)), Step::Take);
        assert_eq!(election.step(record("other", 1), at(0)), Step::Wait);
        assert_eq!(election.step(record("other", 1), at(10)), Step::Wait);
        assert_eq!(election.step(record("other", 2), at(11)), Step::Wait, "renewed");
        assert_eq!(election.step(record("other", 2), at(21)), Step::Wait);
        assert_eq!(election.step(record("other", 2), at(22)), Step::Take);
        assert_eq!(election.step(record("", 3), at(22)), Step::Take, "given back");
        assert_eq!(election.step(record("me", 4), at(22)), Step::Take);
    }

    #[test]
    fn who_cannot_renew_stops_before_anybody_else_begins() {
        let duration = Duration::from_secs(10);
        let mut holder = Election::new("a".into(), duration);
        let mut other = Election::new("b".into(), duration);
        holder.wrote(at(0));
        // The other one saw the write at the earliest when it was made.
        for second in 0..=10 {
            assert_eq!(other.step(record("a", 1), at(second)), Step::Wait);
        }
        assert_eq!(holder.leads_until(), at(5));
        assert_eq!(other.step(record("a", 1), at(11)), Step::Take);
        holder.wrote(at(6));
        holder.lost();
        assert_eq!(holder.leads_until(), at(0));
    }
}
