//! What is counted of the verbs. Label sets are bounded: a verb, and whether it was answered.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::index::Waiting;

/// What the scheduler asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    /// Which nodes serve a pod.
    Filter,
    /// Which best.
    Prioritize,
    /// Bind it.
    Bind,
    /// Whose place it may take.
    Preempt,
}

impl Verb {
    /// Its name in the address.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Prioritize => "prioritize",
            Self::Bind => "bind",
            Self::Preempt => "preempt",
        }
    }
}

impl EncodeLabelValue for Verb {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.as_str().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    verb: Verb,
    answered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVerb {
    verb: Verb,
}

/// Metrics of one extender.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Of, Counter>,
    seconds: Family<OfVerb, Histogram>,
    waiting: Gauge,
    reserved: Gauge,
    bound: Gauge,
    vacant: Gauge,
    in_part: Gauge,
    leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = || {
            let bounds = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.064, 0.25, 1.0, 5.0, 30.0];
            Histogram::new(bounds)
        };
        let mut registry = Registry::with_prefix("gpuzone_scheduler");
        let requests = Family::default();
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        let [waiting, reserved, bound, vacant, in_part, leading] =
            [(); 6].map(|()| Gauge::default());
        registry.register("requests", "What the scheduler asked", requests.clone());
        registry.register("request_seconds", "How long an answer took", seconds.clone());
        registry.register("pods_waiting", "Pods with GPUs that have no node", waiting.clone());
        registry.register("pods_reserved", "Pods on their way to a node", reserved.clone());
        registry.register("pods_bound", "Pods that were seen on their node", bound.clone());
        let help = "Places that stay for pods that replace others of their group";
        registry.register("places_vacant", help, vacant.clone());
        let help = "Groups of which some pods are bound and fewer than start together";
        registry.register("groups_in_part", help, in_part.clone());
        registry.register("leading", "Whether this replica binds pods", leading.clone());
        Self { registry, requests, seconds, waiting, reserved, bound, vacant, in_part, leading }
    }
}

impl Metrics {
    /// One request was answered, or not.
    pub(crate) fn count(&self, verb: Verb, answered: bool, took: Duration) {
        self.requests.get_or_create(&Of { verb, answered }).inc();
        self.seconds.get_or_create(&OfVerb { verb }).observe(took.as_secs_f64());
    }

    /// All of them, in OpenMetrics' form.
    ///
    /// # Errors
    /// When they cannot be written, which is a fault of a metric's own.
    pub(crate) fn text(
        &self,
        counts: Waiting,
        in_part: usize,
        leading: bool,
    ) -> Result<String, fmt::Error> {
        let set = |gauge: &Gauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set(&self.waiting, counts.waiting);
        set(&self.reserved, counts.reserved);
        set(&self.bound, counts.bound);
        set(&self.vacant, counts.vacant);
        set(&self.in_part, in_part);
        self.leading.set(leading.into());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
