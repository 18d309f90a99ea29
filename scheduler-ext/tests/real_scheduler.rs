//! What a real kube-scheduler does with the extender, on a cluster of one's own (`real_cluster.rs` says
//! which): requests with names and with whole nodes, plain and over TLS, a quota and what wakes pods that
//! wait for it, two groups, preemption, and a scheduler and an extender that are killed in the middle.
//! Nodes are objects only. Skipped, and said so, where no cluster is named.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::AssertUnwindSafe;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use futures::FutureExt;
    use gpuzone_api::kubernetes::WAKE_ANNOTATION;
    use gpuzone_crds::GpuQuota;
    use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use k8s_openapi::api::scheduling::v1::PriorityClass;
    use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
    use kube::{Api, ResourceExt};
    use serde_json::{Value, json};

    use super::support::certificates::*;
    use super::support::extender::*;
    use super::support::scheduler::*;
    use super::support::suite::*;
    use super::support::{grouped, pod};

    /// The namespace of who is guaranteed what others borrow, and its quota.
    const OWNER: &str = "gpu-zone-e2e-owner";

    /// Two nodes of four GPUs of 16 GiB, and who schedules.
    struct Scene<'a> {
        fleet: &'a Fleet,
        scheduler: &'a KubeScheduler,
        extender: Extender,
        folder: &'a Path,
    }

    impl Scene<'_> {
        fn begin(&self) -> Scheduling {
            self.scheduler.start(self.folder, Some(&Asked::plainly(self.extender.port)))
        }

        async fn now(&self) -> Vec<Pod> {
            self.fleet.pods().list(&ListParams::default()).await.unwrap().items
        }

        /// Names of these pods that have a node.
        async fn placed(&self, among: &BTreeSet<String>) -> BTreeSet<String> {
            let placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
            let all = self.now().await.into_iter().filter(placed).map(|pod| pod.name_any());
            all.filter(|name| among.contains(name)).collect()
        }

        /// With patience: some schedulers look at a pod whose bind was refused a minute later.
        async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
            let end = Instant::now() + Duration::from_secs(180);
            while !holds().await {
                let log = |name: &str| {
                    let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
                    text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
                };
                let (extender, scheduler) = (log("ext.log"), log("scheduler.log"));
                assert!(Instant::now() < end, "not yet: {what}\n{extender}\n{scheduler}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }

        /// Why the scheduler says that a pod waits.
        async fn says(&self, name: &str, part: &str) {
            let said = async || {
                let pod = self.fleet.pods().get(name).await.unwrap();
                let conditions = pod.status.and_then(|status| status.conditions);
                let mut said = conditions.into_iter().flatten().filter_map(|c| c.message);
                said.any(|message| message.contains(part))
            };
            self.until(&format!("{name}: {part}"), said).await;
        }
    }

    /// Names or nodes, plain or over TLS: pods get their places.
    async fn is_asked_in_every_way(
        fleet: &Fleet,
        scheduler: &KubeScheduler,
        kubeconfig: &Path,
        folder: &Path,
    ) {
        let [ca, certificate, key] = certificates(folder, &issuer());
        for (secret, node_cache_capable) in [(false, true), (false, false), (true, true)] {
            let mut more = vec!["--lease-namespace", NAME];
            if secret {
                more.extend(["--tls-certificate", &certificate, "--tls-key", &key]);
                more.extend(["--client-ca", &ca]);
            }
            let mut extender = Extender::over(kubeconfig, folder, "asked", &more);
            extender.leads().await;
            let tls = secret.then(|| [ca.clone(), certificate.clone(), key.clone()]);
            let url = match secret {
                false => format!("http://127.0.0.1:{}", extender.port),
                true => format!("https://localhost:{}", extender.port),
            };
            let asked = Asked { url, tls, node_cache_capable };
            let limits = [("gpu", 1), ("memory-mib", 4096)];
            let names = fleet.create("asked", 20, &limits).await;
            let begin = || scheduler.start(folder, Some(&asked));
            let (_scheduler, _) = fleet.bound(&names, begin).await;
            fleet.placed_once(&names).await;
            say(&format!("asked at {}, nodeCacheCapable {node_cache_capable}: ok", asked.url));
            fleet.delete_pods().await;
            extender.terminate();
        }
    }

    /// What a quota refuses waits with its reason, and goes on when the quota is raised.
    async fn holds_pods_to_a_quota(scene: &Scene<'_>) {
        let quotas: Api<GpuQuota> = Api::all(scene.fleet.client.clone());
        let limit = async |gpus: u32| {
            let limits = json!({ "spec": { "limits": { "gpus": gpus } } });
            let params = PatchParams::default();
            quotas.patch(NAME, &params, &Patch::Merge(&limits)).await.unwrap();
        };
        limit(2).await;
        let known = async || {
            let (_, said) = scene.extender.ask("/quotas", &Value::Null).await;
            said[NAME]["limits"]["gpus"] == json!(2)
        };
        scene.until("the quota is known", known).await;
        let names = scene.fleet.create("held", 3, &[("gpu", 1)]).await;
        let _scheduler = scene.begin();
        let some = async || scene.placed(&names).await.len() == 2;
        scene.until("two of three have a place", some).await;
        let placed = scene.placed(&names).await;
        let waits = names.difference(&placed).next().unwrap();
        if scene.scheduler.shows_all_reasons() {
            scene.says(waits, &format!("GpuQuota '{NAME}': ")).await;
        } else {
            say(
                "SKIPPED: the pod's reason: this kube-scheduler shows none of those that are final",
            );
        }
        let nodes: Api<Node> = Api::all(scene.fleet.client.clone());
        let touched = async || {
            let nodes = nodes.list(&ListParams::default()).await.unwrap();
            let when = |node: &Node| node.annotations().get(WAKE_ANNOTATION).cloned();
            nodes.iter().map(when).collect::<Vec<_>>()
        };
        let before = touched().await;
        limit(4096).await;
        let began = Instant::now();
        let all = async || scene.placed(&names).await.len() == 3;
        if scene.scheduler.is_woken_by_annotations() {
            scene.until("the third has one", all).await;
            // By itself the scheduler looks again after five minutes.
            say(&format!(
                "{:?} after the quota was raised, the pod has its place",
                began.elapsed()
            ));
        } else {
            scene.until("a Node is touched", async || touched().await != before).await;
            say("SKIPPED: waking: this kube-scheduler does not look at annotations of Nodes");
        }
        say("a quota holds: ok");
        scene.fleet.delete_pods().await;
    }

    /// Of two groups that each need more than half, one runs, and the other one after it.
    async fn binds_groups_as_a_whole(scene: &Scene<'_>) {
        let member = |group: &str, n: u32| {
            grouped(pod(NAME, &format!("{group}-{n}"), &[("gpu", 1)]), group, 6)
        };
        let both = (0..6).flat_map(|n| [member("one", n), member("two", n)]);
        let names = scene.fleet.create_these(both.collect()).await;
        let _scheduler = scene.begin();
        let six = async || scene.placed(&names).await.len() >= 6;
        scene.until("a group has its places", six).await;
        let placed = scene.placed(&names).await;
        let group = &placed.first().unwrap()[..3];
        assert!(placed.len() == 6 && placed.iter().all(|name| name.starts_with(group)));
        scene.fleet.placed_once(&placed).await;
        for name in &placed {
            let now = DeleteParams::default().grace_period(0);
            scene.fleet.pods().delete(name, &now).await.unwrap();
        }
        let rest: BTreeSet<String> = names.difference(&placed).cloned().collect();
        let others = async || scene.placed(&rest).await.len() == 6;
        scene.until("the other group has its places", others).await;
        say("two groups, one after the other: ok");
        scene.fleet.delete_pods().await;
    }

    /// Who is more important takes the place of one that is not, where slots are short, too.
    async fn takes_the_place_of_lower_priority(scene: &Scene<'_>) {
        let classes: Api<PriorityClass> = Api::all(scene.fleet.client.clone());
        let class = json!({ "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": { "name": NAME }, "value": 1000 });
        let class = serde_json::from_value(class).unwrap();
        classes.create(&PostParams::default(), &class).await.unwrap();
        let nodes: Api<Node> = Api::all(scene.fleet.client.clone());
        let slots = async |count: &str| {
            for node in &scene.fleet.nodes {
                let room = json!({ "gpuzone.dev/gpu": count });
                let said = json!({ "status": { "capacity": room, "allocatable": room } });
                let params = PatchParams::default();
                nodes.patch_status(node, &params, &Patch::Merge(&said)).await.unwrap();
            }
        };
        slots("4").await;
        let names = scene.fleet.create("low", 8, &[("gpu", 1)]).await;
        let (scheduler, _) = scene.fleet.bound(&names, || scene.begin()).await;
        let mut high = pod(NAME, "high", &[("gpu", 1)]);
        high["spec"]["priorityClassName"] = json!(NAME);
        let high = scene.fleet.create_these(vec![high]).await;
        let placed = async || scene.placed(&high).await == high;
        scene.until("it has the place of another", placed).await;
        let left = scene.placed(&names).await;
        assert_eq!(left.len(), 7, "one goes, and no more");
        scene.fleet.placed_once(&left.union(&high).cloned().collect()).await;
        drop(scheduler);
        say("preemption: ok");
        scene.fleet.delete_pods().await;
        slots("500").await;
        classes.delete(NAME, &DeleteParams::default()).await.unwrap();
    }

    /// What a quota is guaranteed comes back from whoever borrows it, by evictions, and a disruption budget holds.
    async fn takes_back_what_is_guaranteed(
        fleet: &Fleet,
        scheduler: &KubeScheduler,
        kubeconfig: &Path,
        folder: &Path,
    ) {
        let quotas: Api<GpuQuota> = Api::all(fleet.client.clone());
        let namespaces: Api<Namespace> = Api::all(fleet.client.clone());
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(fleet.client.clone(), NAME);
        let labels = json!({ "kubernetes.io/metadata.name": OWNER });
        let own = json!({ "metadata": { "labels": labels } });
        apply(&namespaces, OWNER, object("v1", "Namespace", OWNER, own)).await;
        let guaranteed = |gpus: u32| json!({ "cohort": NAME, "guaranteed": { "gpus": gpus } });
        let mut spec = guaranteed(6);
        spec["namespaceSelector"] = json!({ "matchLabels": labels });
        let quota = json!({ "spec": spec });
        apply(&quotas, OWNER, object("gpuzone.dev/v1alpha1", "GpuQuota", OWNER, quota)).await;
        let (params, patch) = (PatchParams::default(), json!({ "spec": guaranteed(2) }));
        quotas.patch(NAME, &params, &Patch::Merge(&patch)).await.unwrap();

        let more = ["--lease-namespace", NAME, "--reclaim-seconds", "1"];
        let extender = Extender::over(kubeconfig, folder, "reclaims", &more);
        extender.leads().await;
        let known =
            async || extender.ask("/quotas", &Value::Null).await.1.to_string().contains(OWNER);
        until("the quotas are known", || extender.log(), known).await;
        let mut scene = Scene { fleet, scheduler, extender, folder };
        let borrow = fleet.create("borrow", 8, &[("gpu", 1)]).await;
        let (_scheduler, _) = fleet.bound(&borrow, || scene.begin()).await;
        for name in &borrow {
            let ready = json!([{ "type": "Ready", "status": "True" }]);
            let status = json!({ "status": { "phase": "Running", "conditions": ready } });
            fleet.pods().patch_status(name, &params, &Patch::Merge(&status)).await.unwrap();
        }
        let all_stay = json!({ "spec": { "minAvailable": 8, "selector": {} } });
        apply(&budgets, NAME, object("policy/v1", "PodDisruptionBudget", NAME, all_stay)).await;
        let counted = async || {
            let status = budgets.get(NAME).await.unwrap().status;
            status.is_some_and(|status| status.current_healthy == 8)
        };
        scene.until("the budget counts them", counted).await;

        let wants = fleet.create_these(vec![pod(OWNER, "wants", &[("gpu", 1)])]).await;
        let refused = async || scene.extender.log().contains("cannot be evicted now");
        scene.until("the budget keeps them", refused).await;
        assert_eq!(scene.placed(&borrow).await, borrow);
        budgets.delete(NAME, &DeleteParams::default()).await.unwrap();
        let owners: Api<Pod> = Api::namespaced(fleet.client.clone(), OWNER);
        let has_it = async || {
            let pod = owners.get(wants.first().unwrap()).await.unwrap();
            pod.spec.unwrap().node_name.is_some()
        };
        scene.until("it has what is guaranteed to it", has_it).await;
        assert_eq!(scene.placed(&borrow).await.len(), 7, "one goes, and no more");
        say("a guarantee comes back by an eviction, once no disruption budget forbids it: ok");
        remove_owner(fleet).await;
        fleet.delete_pods().await;
        scene.extender.terminate();
    }

    async fn remove_owner(fleet: &Fleet) {
        let (now, client) = (DeleteParams::default().grace_period(0), fleet.client.clone());
        let _ = Api::<Pod>::namespaced(client.clone(), OWNER).delete("wants", &now).await;
        let _ = Api::<GpuQuota>::all(client.clone()).delete(OWNER, &now).await;
        let _ = Api::<Namespace>::all(client.clone()).delete(OWNER, &now).await;
        let _ = Api::<PodDisruptionBudget>::namespaced(client, NAME).delete(NAME, &now).await;
    }

    /// Whoever is killed in the middle: each pod gets its place in the end, and none is given twice.
    async fn goes_on_after_kills(scene: &mut Scene<'_>) {
        let names = scene.fleet.create("killed", 120, &[("gpu", 1), ("memory-mib", 1024)]).await;
        let first = scene.begin();
        let so_many = async |scene: &Scene<'_>, wanted: usize| {
            let placed = async || scene.placed(&names).await.len() >= wanted;
            scene.until(&format!("{wanted} have a place"), placed).await;
        };
        so_many(scene, 20).await;
        drop(first);
        let second = scene.begin();
        so_many(scene, 60).await;
        scene.extender.kill_and_start_anew();
        so_many(scene, 120).await;
        drop(second);
        scene.fleet.placed_once(&names).await;
        say("scheduler and extender killed in the middle: ok");
        scene.fleet.delete_pods().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_real_scheduler_does_what_the_extender_says() {
        let Some((kubeconfig, scheduler)) = told() else { return };
        let folder = tempfile::Builder::new().prefix("gz-e2e-").tempdir_in("/tmp").unwrap();
        let mut fleet = Fleet::install(client(&kubeconfig).await).await;
        let steps = async {
            fleet.furnish(2).await;
            is_asked_in_every_way(&fleet, &scheduler, &kubeconfig, folder.path()).await;
            let more = ["--lease-namespace", NAME];
            let extender = Extender::over(&kubeconfig, folder.path(), "ext", &more);
            extender.leads().await;
            let (fleet, folder) = (&fleet, folder.path());
            let mut scene = Scene { fleet, scheduler: &scheduler, extender, folder };
            holds_pods_to_a_quota(&scene).await;
            binds_groups_as_a_whole(&scene).await;
            takes_the_place_of_lower_priority(&scene).await;
            goes_on_after_kills(&mut scene).await;
            scene.extender.terminate();
            takes_back_what_is_guaranteed(fleet, &scheduler, &kubeconfig, folder).await;
        };
        // Whatever fails, nothing is left behind.
        let ended = AssertUnwindSafe(steps).catch_unwind().await;
        let classes: Api<PriorityClass> = Api::all(fleet.client.clone());
        let _ = classes.delete(NAME, &DeleteParams::default()).await;
        remove_owner(&fleet).await;
        fleet.remove().await;
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }
}
