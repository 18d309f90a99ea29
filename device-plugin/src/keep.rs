//! Which leases of pods are over.
//!
//! A lease is ended on evidence, never on silence: a kubelet or an API server that is away says
//! nothing, and a kubelet that has just started may not list its pods yet. The evidence is one of
//!
//! * the pod is over, its containers included, as the API server has it from the kubelet;
//! * the API server has no such pod any more, **and** the kubelet does not list one of its name
//!   with the slot: a pod that was deleted by force may run on;
//! * the API server has no such pod any more, and has another one of the same name: what the
//!   kubelet lists is that one;
//! * the kubelet has given the slot to another pod.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use gpuzone_api::kubernetes::PodUid;

use crate::claim::PodView;
use crate::holders::{Holders, PodName};

/// The pods of this node, as a complete list of the API server has them.
pub type Pods = BTreeMap<PodUid, PodView>;

/// What becomes of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// It is ended, for this reason.
    End(&'static str),
}

/// Whether the lease of the pod `uid`, which appears in `slot` (or is of that device), is over. `name` is the pod's
/// name, where it is known. `pods` and `holders` are `None` when nobody answered; both were asked
/// after the lease was listed.
pub fn verdict<D: Ord + FromStr + fmt::Display>(
    uid: &PodUid,
    name: Option<&PodName>,
    slot: &D,
    pods: Option<&Pods>,
    holders: Option<&Holders<D>>,
) -> Verdict {
    let pod = pods.map(|pods| pods.get(uid));
    let name = pod.flatten().map(|pod| &pod.name).or(name);
    let held_by = holders.map(|holders| holders.of(slot));
    if let Some(Some(pod)) = pod
        && pod.ended
    {
        return Verdict::End("its pod is over");
    }
    // The kubelet gives a slot to another pod only when it has done with the one before. One
    // that it lists for both is kept: that is a fault, and not of this pod's.
    if let (Some(held_by), Some(name)) = (&held_by, name)
        && !held_by.is_empty()
        && !held_by.contains(name)
    {
        return Verdict::End("the kubelet gave its slot to another pod");
    }
    match (pod, pods, held_by) {
        (Some(None), Some(pods), held_by) => {
            let renewed = name.is_some_and(|name| pods.values().any(|pod| pod.name == *name));
            let listed = held_by.is_none_or(|held_by| match name {
                Some(name) => held_by.contains(name),
                // Whoever it is, it may be this one.
                None => !held_by.is_empty(),
            });
            if (renewed && holders.is_some()) || !listed {
                Verdict::End("its pod is gone")
            } else {
                Verdict::Keep
            }
        }
        (Some(Some(_)) | None, _, _) | (Some(None), None, _) => Verdict::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holders::Holding;
    use gpuzone_api::SlotId;
    use std::collections::BTreeSet;

    fn uid(n: u8) -> PodUid {
        format!("uid-{n}").parse().unwrap()
    }

    fn name(text: &str) -> PodName {
        PodName { namespace: "team".into(), name: text.into() }
    }

    fn pods(pods: &[(u8, &str, bool)]) -> Pods {
        let view = |(n, pod, ended): &(u8, &str, bool)| {
            let view = PodView {
                name: name(pod),
                uid: uid(*n),
                node: Some("n".into()),
                ended: *ended,
                placement: None,
                containers: vec![],
            };
            (uid(*n), view)
        };
        pods.iter().map(view).collect()
    }

    fn slot() -> SlotId {
        SlotId::new(3).unwrap()
    }

    fn holders(pods: &[&str]) -> Holders {
        let holding = |pod: &&str| Holding {
            pod: name(pod),
            container: "c".into(),
            devices: BTreeSet::from([slot()]),
        };
        Holders::from(pods.iter().map(holding).collect::<Vec<_>>())
    }

    fn ended(pods: Option<&Pods>, holders: Option<&Holders>) -> bool {
        verdict(&uid(1), Some(&name("a")), &slot(), pods, holders) != Verdict::Keep
    }

    #[test]
    fn silence_ends_nothing() {
        let (none, running) = (pods(&[]), pods(&[(1, "a", false)]));
        assert!(!ended(None, None));
        assert!(!ended(Some(&none), None), "the kubelet cannot say that its containers are gone");
        assert!(!ended(None, Some(&holders(&[]))), "a kubelet that has just started lists nothing");
        assert!(!ended(Some(&running), Some(&holders(&[]))));
        assert!(!ended(Some(&running), Some(&holders(&["a"]))));
        assert!(!ended(Some(&none), Some(&holders(&["a"]))), "deleted by force, it runs on");
        assert!(!ended(Some(&running), Some(&holders(&["a", "b"]))), "listed twice");
    }

    #[test]
    fn evidence_ends_it() {
        let none = pods(&[]);
        assert!(ended(Some(&none), Some(&holders(&[]))), "gone for both");
        assert!(ended(Some(&pods(&[(1, "a", true)])), None), "over");
        assert!(
            ended(Some(&pods(&[(1, "a", true)])), Some(&holders(&["a"]))),
            "over, still listed"
        );
        assert!(ended(None, Some(&holders(&["b"]))), "the slot is another's");
        assert!(ended(Some(&none), Some(&holders(&["b"]))));
        let renewed = pods(&[(2, "a", false)]);
        assert!(ended(Some(&renewed), Some(&holders(&["a"]))), "that is the new one");
        assert!(!ended(Some(&renewed), None), "and the old one may run on");
    }

    #[test]
    fn a_pod_whose_name_nobody_knows_is_kept_while_its_slot_is_held() {
        let none = pods(&[]);
        let of = |held: &[&str]| verdict(&uid(1), None, &slot(), Some(&none), Some(&holders(held)));
        assert_eq!(of(&["b"]), Verdict::Keep);
        assert_eq!(of(&[]), Verdict::End("its pod is gone"));
    }
}
