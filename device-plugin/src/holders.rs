//! Which pod holds which device, as the kubelet's pod resources say. A device is a slot unless it
//! is said to be something else.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use gpuzone_api::kubelet::podresources::v1::ListPodResourcesResponse;
use gpuzone_api::kubernetes::{ResourceName, ResourcePrefix};
use gpuzone_api::{InvalidSlot, SlotId};

/// The slots of one container: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSet {
    lead: SlotId,
    all: BTreeSet<SlotId>,
}

/// Why devices are no container's slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlots {
    /// No device.
    #[error("the kubelet names no device")]
    Empty,
    /// A device that is no slot.
    #[error("the kubelet names a device that this plugin never listed: {0}")]
    Foreign(#[from] InvalidSlot),
    /// A slot that this node does not have.
    #[error("the kubelet names {0}, which this plugin does not list")]
    NotListed(SlotId),
}

impl SlotSet {
    /// The slots that these devices are, each of which has to be `listed`.
    ///
    /// # Errors
    /// When there is none, or one is none of those.
    pub fn parse(ids: &[String], listed: impl Fn(SlotId) -> bool) -> Result<Self, InvalidSlots> {
        let all: BTreeSet<SlotId> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let lead = *all.first().ok_or(InvalidSlots::Empty)?;
        match all.iter().find(|slot| !listed(**slot)) {
            Some(slot) => Err(InvalidSlots::NotListed(*slot)),
            None => Ok(Self { lead, all }),
        }
    }

    /// The slots of a holding.
    pub fn of(all: &BTreeSet<SlotId>) -> Option<Self> {
        Some(Self { lead: *all.first()?, all: all.clone() })
    }

    /// The one whose folder the container has mounted: the first.
    pub fn lead(&self) -> SlotId {
        self.lead
    }

    /// All of them.
    pub fn all(&self) -> &BTreeSet<SlotId> {
        &self.all
    }
}

/// A pod as the kubelet names it. It does not say which one of several that had this name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A container that holds devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding<D = SlotId> {
    /// Of which pod.
    pub pod: PodName,
    /// Its name.
    pub container: String,
    /// All its devices.
    pub devices: BTreeSet<D>,
}

/// Resources whose devices are of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resources {
    /// One.
    One(ResourceName),
    /// Those of a family: one for each profile.
    Family(ResourcePrefix),
}

impl Resources {
    /// Whether a resource is one of these.
    pub fn include(&self, resource: &str) -> bool {
        match self {
            Self::One(name) => resource == name.as_str(),
            Self::Family(prefix) => {
                resource.parse().is_ok_and(|name| prefix.profile(&name).is_some())
            }
        }
    }
}

/// Who holds the devices of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders<D = SlotId> {
    holdings: Vec<Holding<D>>,
}

/// A pod that holds slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The pod.
    pub pod: PodName,
    /// The container that holds exactly these slots. `None` for a plain init container: the
    /// kubelet does not list those, and theirs are parts of app containers' slots.
    pub container: Option<String>,
}

/// Why nobody can be said to hold slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HolderError {
    /// Nobody does, or not yet.
    #[error("the kubelet lists no pod that holds {0}; it is tried again")]
    Nobody(String),
    /// More than one does.
    #[error(
        "the kubelet says that {slot} is held by {one} and by {other}; neither gets a GPU until one of them is deleted"
    )]
    Two {
        /// Which.
        slot: String,
        /// By whom.
        one: PodName,
        /// And by whom.
        other: PodName,
    },
}

impl<D> From<Vec<Holding<D>>> for Holders<D> {
    fn from(holdings: Vec<Holding<D>>) -> Self {
        Self { holdings }
    }
}

impl<D: Ord + FromStr + fmt::Display> Holders<D> {
    /// What a list says of these resources. Devices of other names are nobody's of ours.
    pub fn read(list: &ListPodResourcesResponse, resources: &Resources) -> Self {
        let mut holdings = Vec::new();
        for pod in &list.pod_resources {
            let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
            for container in &pod.containers {
                let devices = container.devices.iter();
                let ours = devices.filter(|devices| resources.include(&devices.resource_name));
                // One entry for each NUMA node.
                let devices: BTreeSet<D> =
                    ours.flat_map(|d| &d.device_ids).filter_map(|id| id.parse().ok()).collect();
                if !devices.is_empty() {
                    let (pod, container) = (name.clone(), container.name.clone());
                    holdings.push(Holding { pod, container, devices });
                }
            }
        }
        Self { holdings }
    }

    /// All containers that hold devices.
    pub fn holdings(&self) -> &[Holding<D>] {
        &self.holdings
    }

    /// The pods that hold one device.
    pub fn of(&self, device: &D) -> BTreeSet<&PodName> {
        let holding = self.holdings.iter().filter(|holding| holding.devices.contains(device));
        holding.map(|holding| &holding.pod).collect()
    }

    /// The pod that holds `devices`, some of which may have no holder any more: an init container's
    /// that no app container took over.
    ///
    /// # Errors
    /// When no pod does, or more than one.
    pub fn find(&self, devices: &BTreeSet<D>) -> Result<Found, HolderError> {
        let mut found: Option<&PodName> = None;
        for device in devices {
            for pod in self.of(device) {
                match found {
                    Some(other) if other != pod => {
                        let (one, other) = (other.clone(), pod.clone());
                        return Err(HolderError::Two { slot: device.to_string(), one, other });
                    }
                    Some(_) | None => found = Some(pod),
                }
            }
        }
        let first = || devices.first().map_or_else(String::new, ToString::to_string);
        let pod = found.cloned().ok_or_else(|| HolderError::Nobody(first()))?;
        let exact = self.holdings.iter().find(|held| held.pod == pod && held.devices == *devices);
        Ok(Found { container: exact.map(|held| held.container.clone()), pod })
    }

    /// The container of a pod that holds all of these devices and others: what an init container holds
    /// is a part of what that one takes over.
    pub fn covering(&self, pod: &PodName, devices: &BTreeSet<D>) -> Option<&Holding<D>> {
        let more = |held: &&Holding<D>| held.pod == *pod && held.devices.is_superset(devices);
        self.holdings.iter().find(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_api::kubelet::podresources::v1::{
        ContainerDevices, ContainerResources, PodResources,
    };

    fn pod(name: &str, containers: &[(&str, &[&str])]) -> PodResources {
        let devices = |ids: &[&str]| ContainerDevices {
            resource_name: "gpuzone.dev/gpu".into(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let other = ContainerDevices {
            resource_name: "other.dev/x".into(),
            device_ids: vec!["slot-9".into()],
        };
        let container = |(name, ids): &(&str, &[&str])| ContainerResources {
            name: (*name).into(),
            devices: vec![devices(ids), other.clone()],
        };
        PodResources {
            name: name.into(),
            namespace: "team".into(),
            containers: containers.iter().map(container).collect(),
        }
    }

    fn holders(pods: Vec<PodResources>) -> Holders {
        let list = ListPodResourcesResponse { pod_resources: pods };
        Holders::read(&list, &Resources::One("gpuzone.dev/gpu".parse().unwrap()))
    }

    fn slots(numbers: &[u16]) -> SlotSet {
        let ids: Vec<String> = numbers.iter().map(|n| format!("slot-{n}")).collect();
        SlotSet::parse(&ids, |_| true).unwrap()
    }

    #[test]
    fn the_kubelet_says_who_holds_what() {
        let both = holders(vec![
            pod("a", &[("train", &["slot-1", "slot-2"]), ("side", &["slot-3"])]),
            pod("b", &[("app", &["slot-4", "GPU-7", "slot-99999"])]),
        ]);
        let found = both.find(slots(&[2, 1]).all()).unwrap();
        assert_eq!(
            (found.pod.to_string().as_str(), found.container.as_deref()),
            ("team/a", Some("train"))
        );
        // An init container: a part of an app container's, and one that is nobody's now.
        assert_eq!(both.find(slots(&[1, 7]).all()).unwrap().container, None);
        assert_eq!(both.find(slots(&[2]).all()).unwrap().container, None);
        let nobody = both.find(slots(&[9]).all()).unwrap_err().to_string();
        assert!(nobody.contains("no pod that holds slot-9"), "{nobody}");
        assert_eq!(both.holdings()[2].devices, BTreeSet::from([SlotId::new(4).unwrap()]));
    }

    #[test]
    fn a_family_is_its_prefix() {
        let mig = Resources::Family("gpuzone.dev/mig-".parse().unwrap());
        for (name, included) in [
            ("gpuzone.dev/mig-1g.10gb", true),
            ("gpuzone.dev/mig-", false),
            ("gpuzone.dev/gpu", false),
            ("other.dev/mig-1g.10gb", false),
        ] {
            assert_eq!(mig.include(name), included, "{name}");
        }
    }

    #[test]
    fn a_slot_of_two_pods_is_neithers() {
        let twice = holders(vec![pod("a", &[("x", &["slot-1"])]), pod("b", &[("y", &["slot-1"])])]);
        let error = twice.find(slots(&[1]).all()).unwrap_err();
        assert!(matches!(error, HolderError::Two { .. }));
        let across = twice.find(slots(&[1, 2]).all()).unwrap_err().to_string();
        assert!(across.contains("team/a and by team/b"), "{across}");
    }

    #[test]
    fn what_is_no_slot_of_this_node_is_refused() {
        let parse = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            SlotSet::parse(&ids, |slot| slot.number().is_some_and(|number| number < 4))
        };
        assert_eq!(parse(&[]), Err(InvalidSlots::Empty));
        assert!(matches!(parse(&["slot-1", "nvidia0"]), Err(InvalidSlots::Foreign(_))));
        assert_eq!(parse(&["slot-4"]), Err(InvalidSlots::NotListed(SlotId::new(4).unwrap())));
        assert_eq!(parse(&["slot-3", "slot-2", "slot-3"]).unwrap().lead().number(), Some(2));
    }
}
