//! How many pods of a group start together, and who says so.
//!
//! A group's `PodGroup` object says it where there is one: it is one word for all of its pods, which
//! may be annotated differently, and for whatever other scheduler reads it. Without one, each pod's
//! annotation counts. Until it is known whether there is one, none of the group starts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gpuzone_api::kubernetes::GroupTerms;

use super::pods::PodEntry;
use super::{Index, Kind};
use crate::pod_group::{GangTerms, PodGroupError};

/// A group's namespace and name.
pub(super) type GroupKey = (String, String);
/// `PodGroup` objects, as they were read.
pub(super) type PodGroups = BTreeMap<GroupKey, Result<GangTerms, PodGroupError>>;

/// Who says how large a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    PodGroup,
    Annotation,
}

/// A group as it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gang {
    pub(super) size: usize,
    pub(super) patience: Duration,
    pub(super) word: Word,
}

/// Why a group cannot start, whoever is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoGang {
    #[error(
        "its group '{name}': PodGroups are not read from the API server yet; it is tried again"
    )]
    Unread { name: String },
    #[error(
        "its group '{name}' has no size: neither is there a PodGroup of that name nor says the annotation gpuzone.dev/pod-group-size how many pods it has"
    )]
    NoSize { name: String },
    #[error("its group '{name}': its PodGroup cannot be read: {error}")]
    Unreadable { name: String, error: PodGroupError },
}

impl Index {
    /// A `PodGroup`, as it is.
    pub fn apply_pod_group(
        &mut self,
        namespace: &str,
        name: &str,
        said: Result<GangTerms, PodGroupError>,
    ) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.pod_groups.get(&key) != Some(&said) {
            self.pod_groups.insert(key.clone(), said);
            self.changed_gang(&key);
        }
    }

    /// A `PodGroup` that is gone. Its pods' annotations count, if they have one.
    pub fn remove_pod_group(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.pod_groups.remove(&key).is_some() {
            self.changed_gang(&key);
        }
    }

    /// Only these `PodGroup`s are there: `namespace/name`.
    pub fn keep_pod_groups(&mut self, names: &BTreeSet<String>) {
        let gone = |key: &&GroupKey| !names.contains(&format!("{}/{}", key.0, key.1));
        for (namespace, name) in self.pod_groups.keys().filter(gone).cloned().collect::<Vec<_>>() {
            self.remove_pod_group(&namespace, &name);
        }
    }

    /// Pods that wait may have what they wait for, and those that were called may be enough now.
    fn changed_gang(&mut self, key: &GroupKey) {
        self.favour = true;
        let pods = self.groups.get(key).map(|group| group.pods.clone()).unwrap_or_default();
        if let Some(uid) = pods.first() {
            self.open_group_of(uid);
        }
    }

    /// The group of a pod, as it starts; `None` for a pod of no group.
    ///
    /// # Errors
    /// When it cannot.
    pub(super) fn gang(&self, entry: &PodEntry) -> Option<Result<Gang, NoGang>> {
        let GroupTerms { name, size } = entry.asks()?.terms.group.as_ref()?;
        let (key, most) = (entry.group()?, self.settings.group_patience);
        let said = match self.pod_groups.get(&key) {
            Some(Ok(terms)) => Ok(Gang {
                size: terms.size.get(),
                // The scheduler gives a bind up that takes longer.
                patience: terms.patience.map_or(most, |patience| patience.min(most)),
                word: Word::PodGroup,
            }),
            Some(Err(error)) => {
                Err(NoGang::Unreadable { name: name.clone(), error: error.clone() })
            }
            None if !self.complete.contains(&Kind::PodGroups) => {
                Err(NoGang::Unread { name: name.clone() })
            }
            None => match size {
                Some(size) => Ok(Gang { size: size.get(), patience: most, word: Word::Annotation }),
                None => Err(NoGang::NoSize { name: name.clone() }),
            },
        };
        Some(said)
    }

    /// What people are told of a pod's group.
    pub(super) fn group_sentence(&self, entry: &PodEntry) -> Option<String> {
        let said = self.gang(entry)?;
        let name = &entry.asks()?.terms.group.as_ref()?.name;
        let group = self.groups.get(&entry.group()?);
        let there = group.map_or(0, |group| group.pods.len());
        let bound = match group.map_or(0, |group| self.bound_of(group)) {
            0 => String::new(),
            bound => format!(", {bound} of them are bound"),
        };
        Some(match said {
            Ok(gang) => {
                let who = match gang.word {
                    Word::PodGroup => "its PodGroup",
                    Word::Annotation => "the pod's annotation",
                };
                format!("'{name}' of {} pods, as {who} says; {there} are there{bound}", gang.size)
            }
            Err(error) => error.to_string(),
        })
    }
}
