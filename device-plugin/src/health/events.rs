//! Events of the node: what changed of which GPU.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use gpuzone_api::kubernetes::NodeName;
use gpuzone_crds::{GpuEntry, GpuNodeStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::links::{LinkError, within};

/// Who tells.
const CONTROLLER: &str = "gpuzone.dev/device-plugin";
/// More than so many are not kept while the API server is away.
const MOST_WAITING: usize = 64;
/// So many may go at once, and then one in this time: what is not told is counted.
const AT_ONCE: u32 = 16;
const ONE_IN: Duration = Duration::from_secs(10);
/// A note is not longer, in bytes; the API server takes 1024.
const LONGEST_NOTE: usize = 1000;

/// Something that changed of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The GPU's, if it is one's.
    uuid: Option<String>,
    warns: bool,
    action: &'static str,
    reason: String,
    note: String,
}

/// `xid-79` as an event's reason has it: `GpuXid79`.
fn camel(cause: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| format!("{}{}", first.to_ascii_uppercase(), letters.as_str()))
    };
    let words: String = cause.split('-').filter_map(word).collect();
    format!("Gpu{}", if words.is_empty() { "Unhealthy" } else { &words })
}

fn named(gpu: &GpuEntry) -> String {
    format!("GPU {} ({}, {})", gpu.index, gpu.model, gpu.uuid)
}

fn out(gpu: &GpuEntry) -> Change {
    let why = gpu.reason.as_deref().unwrap_or("the agent does not say why");
    let (action, until) = match gpu.needs_operator {
        true => ("Quarantine", "until it is cleared"),
        false => ("Suspend", "for now"),
    };
    Change {
        uuid: Some(gpu.uuid.clone()),
        warns: true,
        action,
        reason: camel(gpu.cause.as_deref().unwrap_or_default()),
        note: format!("{} takes no new leases {until}: {why}", named(gpu)),
    }
}

/// What changed between two states; `before` is what was last published, if anything was.
pub(super) fn changes(before: Option<&GpuNodeStatus>, after: &GpuNodeStatus) -> Vec<Change> {
    let known: BTreeMap<&str, &GpuEntry> =
        before.iter().flat_map(|s| &s.gpus).map(|gpu| (gpu.uuid.as_str(), gpu)).collect();
    let mut changes = Vec::new();
    for gpu in &after.gpus {
        let was = known.get(gpu.uuid.as_str());
        let same = was.is_some_and(|was| {
            (was.healthy, &was.cause, was.needs_operator)
                == (gpu.healthy, &gpu.cause, gpu.needs_operator)
        });
        match (gpu.healthy, was) {
            (false, _) if !same => changes.push(out(gpu)),
            (true, Some(was)) if !was.healthy => changes.push(Change {
                uuid: Some(gpu.uuid.clone()),
                warns: false,
                action: "Serve",
                reason: "GpuServesAgain".to_owned(),
                note: format!(
                    "{} takes new leases again. It took none because of: {}",
                    named(gpu),
                    was.reason.as_deref().unwrap_or("what the agent did not say")
                ),
            }),
            (true | false, _) => {}
        }
    }
    let here = |uuid: &str| after.gpus.iter().any(|gpu| gpu.uuid == uuid);
    let gone = known.values().filter(|gpu| !here(&gpu.uuid));
    changes.extend(gone.map(|gpu| Change {
        uuid: Some(gpu.uuid.clone()),
        warns: true,
        action: "Remove",
        reason: "GpuGone".to_owned(),
        note: format!("{} is not among this node's GPUs any more", named(gpu)),
    }));
    changes
}

/// Something that is not as it should be between kubelet and plugin.
pub(super) fn of_kubelet(note: String) -> Change {
    let (action, reason) = ("Register", "GpuPluginNotAsked".to_owned());
    Change { uuid: None, warns: true, action, reason, note }
}

/// How many may go now.
#[derive(Debug)]
struct Bucket {
    left: u32,
    since: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.since).as_secs() / ONE_IN.as_secs();
        let waited = u32::try_from(waited).unwrap_or(u32::MAX);
        if waited > 0 {
            (self.left, self.since) = (self.left.saturating_add(waited).min(AT_ONCE), now);
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

/// Tells the API server. Equal events within some minutes become one that counts.
pub(super) struct Events {
    recorder: Recorder,
    node: NodeName,
    waiting: VecDeque<Change>,
    bucket: Bucket,
    untold: u64,
}

impl Events {
    pub(super) fn new(client: Client, node: NodeName) -> Self {
        let reporter =
            Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_string()) };
        let bucket = Bucket { left: AT_ONCE, since: Instant::now() };
        let recorder = Recorder::new(client, reporter);
        Self { recorder, node, waiting: VecDeque::new(), bucket, untold: 0 }
    }

    /// Has these told, with those that wait already.
    pub(super) fn add(&mut self, changes: Vec<Change>) {
        self.waiting.extend(changes);
        while self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
            self.untold += 1;
        }
    }

    /// Tells what waits.
    ///
    /// # Errors
    /// When the API server cannot be told; the rest waits on. One that it refuses is left out.
    pub(super) async fn tell(&mut self) -> Result<(), LinkError> {
        while let Some(change) = self.waiting.front() {
            if self.bucket.take(Instant::now()) {
                let (event, about) = (event(change, &self.node), about(&self.node));
                let told = within("create events", self.recorder.publish(&event, &about)).await;
                match told {
                    Err(error @ LinkError::NotTaken { .. }) => {
                        tracing::warn!(note = change.note, %error, "an event is left out");
                    }
                    told => told?,
                }
            } else {
                self.untold += 1;
                tracing::warn!(note = change.note, untold = self.untold, "too many events");
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Forgets what waits: nobody lets us tell it.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }
}

fn event(change: &Change, node: &NodeName) -> Event {
    let end = change.note.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = end.take_while(|end| *end <= LONGEST_NOTE).last().unwrap_or(0);
    Event {
        type_: if change.warns { EventType::Warning } else { EventType::Normal },
        reason: change.reason.clone(),
        note: Some(change.note[..end].to_owned()),
        action: change.action.to_owned(),
        // Tells one GPU's events from another's.
        secondary: change.uuid.as_ref().map(|uuid| ObjectReference {
            api_version: Some("gpuzone.dev/v1alpha1".to_owned()),
            kind: Some("GpuNode".to_owned()),
            name: Some(node.to_string()),
            field_path: Some(format!("status.gpus{{{uuid}}}")),
            ..Default::default()
        }),
    }
}

/// The node, as the kubelet's own events name it: its UID there is its name, and `kubectl describe
/// node` looks for that.
fn about(node: &NodeName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_string()),
        uid: Some(node.to_string()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::fixtures::gpu;

    fn told(before: Option<Vec<GpuEntry>>, after: Vec<GpuEntry>) -> Vec<(bool, String, String)> {
        let status = |gpus| GpuNodeStatus::new("nvidia", gpus);
        let changes = changes(before.map(status).as_ref(), &status(after));
        changes.into_iter().map(|c| (c.warns, c.reason, c.note)).collect()
    }

    #[test]
    fn each_change_is_one_event_and_what_is_the_same_is_none() {
        let well = || gpu(0, None, false);
        assert_eq!(told(None, vec![well()]), []);
        let [(true, reason, note)] = &told(None, vec![gpu(0, Some("xid-79"), true)])[..] else {
            panic!()
        };
        assert_eq!(reason, "GpuXid79");
        let expected = "GPU 0 (H200, GPU-0) takes no new leases until it is cleared: because";
        assert!(note.starts_with(expected), "{note}");
        let sick = || gpu(0, Some("zone"), false);
        assert_eq!(told(Some(vec![sick()]), vec![sick()]), []);
        let [(false, reason, note)] = &told(Some(vec![sick()]), vec![well()])[..] else { panic!() };
        assert_eq!(reason, "GpuServesAgain");
        assert!(note.contains("because of zone"), "{note}");
        // It becomes worse; another is there no more.
        let before = vec![gpu(0, Some("unknown-xid"), false), gpu(1, None, false)];
        let after = vec![gpu(0, Some("unknown-xid"), true)];
        let reasons: Vec<_> = told(Some(before), after).into_iter().map(|c| c.1).collect();
        assert_eq!(reasons, ["GpuUnknownXid", "GpuGone"]);
        assert_eq!(camel(""), "GpuUnhealthy");
    }

    #[test]
    fn a_storm_is_bounded() {
        let begin = Instant::now();
        let mut bucket = Bucket { left: AT_ONCE, since: begin };
        let granted = |bucket: &mut Bucket, at: u64| {
            (0..1000).filter(|_| bucket.take(begin + Duration::from_secs(at))).count()
        };
        assert_eq!(granted(&mut bucket, 0), 16);
        assert_eq!(granted(&mut bucket, 9), 0);
        assert_eq!(granted(&mut bucket, 31), 3);
        assert_eq!(granted(&mut bucket, 100_000), 16);
    }

    #[tokio::test]
    async fn an_event_that_is_refused_holds_up_no_other() {
        let (service, mut server) = tower_test::mock::pair::<
            http::Request<kube::client::Body>,
            http::Response<kube::client::Body>,
        >();
        let mut events = Events::new(Client::new(service, "default"), "gpu-1".parse().unwrap());
        events.add(vec![of_kubelet("one".to_owned()), of_kubelet("two".to_owned())]);
        let answered = async {
            let mut notes = Vec::new();
            for code in [422, 500] {
                let (request, send) = server.next_request().await.unwrap();
                let body = request.into_body().collect_bytes().await.unwrap();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                notes.push(body["note"].as_str().unwrap().to_owned());
                let status = serde_json::json!({ "kind": "Status", "apiVersion": "v1",
                    "status": "Failure", "reason": "x", "message": "it is", "code": code });
                let body = kube::client::Body::from(status.to_string().into_bytes());
                send.send_response(http::Response::builder().status(code).body(body).unwrap());
            }
            notes
        };
        let (told, notes) = tokio::join!(events.tell(), answered);
        assert!(matches!(told, Err(LinkError::Api(_))), "{told:?}");
        assert_eq!(notes, ["one", "two"]);
        assert_eq!(events.waiting.len(), 1, "what was not refused waits");
    }
}
