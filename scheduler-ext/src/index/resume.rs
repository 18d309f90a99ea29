//! Groups that a leader before this one bound in part: it was ended in the middle of their Bindings, or
//! some were refused. What it had set aside for the others nobody knows any more, so they get places anew,
//! before anybody else gets any.

use gpuzone_api::kubernetes::PodUid;

use super::bind::State;
use super::gang::{Gang, GroupKey};
use super::pods::{PodEntry, Stand};
use super::{Index, Moment};

impl Index {
    /// Sets places aside for the pods that are missing of groups that run in part, as far as there is
    /// room, and keeps them for their group's time. To be called when all pods are known, and before any is
    /// bound.
    pub fn resume_groups(&mut self, now: Moment) {
        let nodes = self.nodes.iter().filter(|(_, node)| node.exists && node.room.is_some());
        let mut nodes: Vec<String> = nodes.map(|(name, _)| name.to_string()).collect();
        nodes.sort_unstable();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        for uid in self.left_behind() {
            let Some(entry) = self.pods.get(&uid).filter(|entry| self.group_needs_plan(entry))
            else {
                continue;
            };
            let (Some(key), Some(Ok(gang))) = (entry.group(), self.gang(entry)) else { continue };
            let pod = entry.name.clone();
            if !self.resume(&key, &uid, &nodes, gang, now) {
                continue;
            }
            if let Some(group) = self.groups.get_mut(&key) {
                (group.open, group.keeps, group.patience) = (true, true, gang.patience);
            }
            tracing::info!(%pod, "others of its group are bound, and a place is set aside for it");
        }
    }

    /// Pods that wait while others of their group are bound.
    fn left_behind(&self) -> Vec<PodUid> {
        let run = self.groups.values().filter(|group| self.bound_of(group) > 0);
        let waits = |uid: &&PodUid| self.pods.get(*uid).is_some_and(PodEntry::waits);
        run.flat_map(|group| group.pods.iter().filter(waits).cloned()).collect()
    }

    fn resume(
        &mut self,
        key: &GroupKey,
        uid: &PodUid,
        nodes: &[&str],
        gang: Gang,
        now: Moment,
    ) -> bool {
        if self.plan(&key.1, std::slice::from_ref(uid), nodes).is_err() {
            return false;
        }
        if let Some(Stand::Reserved(held)) = self.pods.get_mut(uid).map(|entry| &mut entry.stand) {
            (held.state, held.kept) = (State::Kept, Some(now + gang.patience));
        }
        true
    }
}
