//! What a scheduler waits for: `/filter` over HTTP on one connection, as kube-scheduler asks;
//! the way of a pod through filter, prioritize and bind; the start; and the memory that it takes.
//!
//! ```text
//! cargo bench -p gpuzone-scheduler-ext
//! ```
//!
//! The API server is the test kit's stand-in, in the benchmark's own process. It ends with an error when
//! a goal is missed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gpuzone_testkit::kubernetes::ClusterApi;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use support::extender::{Connection, Extender};
use support::pod;

const GPUS: u64 = 8;
const OPEN: &[&str] = &["--without-quota", "admit"];

fn uuid(node: u64, index: u64) -> String {
    format!("GPU-{node:08x}-0000-0000-0000-{index:012x}")
}

fn gpu_node(node: u64) -> Value {
    let gpus = (0..GPUS).map(|index| {
        json!({ "uuid": uuid(node, index), "index": index, "model": "H100", "memoryBytes": 80_u64 << 30,
            "computeCapability": "9.0", "numaNode": index / 4, "migCapable": true,
            "simulated": true, "healthy": true })
    });
    let gpus: Vec<Value> = gpus.collect();
    json!({ "kind": "GpuNode", "apiVersion": "gpuzone.dev/v1alpha1",
        "metadata": { "name": format!("node-{node}") }, "spec": { "node": format!("node-{node}") },
        "status": { "inventoryVersion": "1", "driver": "simulated", "total": GPUS,
            "healthy": GPUS, "gpus": gpus } })
}

/// A pod that runs, with 16 GiB of one GPU.
fn running(n: u64, nodes: u64) -> Value {
    let (node, index) = (n % nodes, (n / nodes) % GPUS);
    let uid = format!("00000000-0000-0000-0000-{n:012x}");
    let mut object = pod("team", &format!("running-{n}"), &[("gpu", 1), ("memory-mib", 16384)]);
    object["metadata"]["uid"] = json!(uid);
    let placement = json!({ "version": 1, "node": format!("node-{node}"), "pod": uid,
        "containers": { "app": [{ "gpu": uuid(node, index), "memory": "16Gi", "share": 20 }] } });
    object["metadata"]["annotations"] = json!({ "gpuzone.dev/placement": placement.to_string() });
    object["spec"]["nodeName"] = json!(format!("node-{node}"));
    object["status"]["phase"] = json!("Running");
    with_host(object)
}

/// What it takes of processors and host memory.
fn with_host(mut pod: Value) -> Value {
    let requests = json!({ "cpu": "2", "memory": "8Gi" });
    pod["spec"]["containers"][0]["resources"]["requests"] = requests;
    pod
}

/// About as long as a kubelet's word of a node is.
fn host(node: u64) -> Value {
    let room = json!({ "cpu": "192", "memory": "2015Gi", "pods": "250", "gpuzone.dev/gpu": "250" });
    let condition = |kind: &str| {
        json!({ "type": kind, "status": "True", "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
            "lastHeartbeatTime": "2026-11-26T08:00:00Z", "lastTransitionTime": "2026-11-26T08:00:00Z" })
    };
    let conditions =
        ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition).to_vec();
    let image = |n: u64| {
        let digest = format!("registry.example.com/team/image-{n}@sha256:{n:064x}");
        json!({ "names": [digest, format!("registry.example.com/team/image-{n}:1")], "sizeBytes": 1 << 30 })
    };
    let images: Vec<Value> = (0..20).map(image).collect();
    json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": format!("node-{node}"),
            "labels": { "kubernetes.io/hostname": format!("node-{node}"), "kubernetes.io/os": "linux" } },
        "status": { "capacity": room, "allocatable": room, "conditions": conditions, "images": images } })
}

async fn cluster(nodes: u64, pods: u64) -> ClusterApi {
    let api = ClusterApi::start().await.unwrap();
    api.put("namespaces", json!({ "metadata": { "name": "team" } }));
    for node in 0..nodes {
        api.put("nodes", host(node));
        api.put("gpunodes", gpu_node(node));
    }
    (0..pods).for_each(|n| api.put("pods", running(n, nodes)));
    api
}

/// Resident memory of a process, and its peak, in MB (proc(5)).
fn resident(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024 / 1_000_000
    };
    (of("VmRSS"), of("VmHWM"))
}

/// Processor time that a process has used (proc(5)), in ticks of 10 ms.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(')').unwrap();
    let ticks = |at| after.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// How many nodes kube-scheduler looks for before it asks extenders, as it is by default:
/// `numFeasibleNodesToFind` of `pkg/scheduler/schedule_one.go`.
fn looked_for(nodes: usize) -> usize {
    if nodes < 100 {
        return nodes;
    }
    let per_cent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * per_cent / 100).max(100)
}

/// Names of nodes as the filter's answer has them, to be asked about next.
fn passed(answer: &[u8]) -> (String, Vec<&str>) {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer<'a> {
        #[serde(borrow)]
        node_names: &'a RawValue,
    }
    let Answer { node_names } = serde_json::from_slice(answer).unwrap();
    (node_names.get().to_owned(), serde_json::from_str(node_names.get()).unwrap())
}

/// A node of the best rank in `/prioritize`'s answer; any where none is above the others.
fn best<'a>(ranks: &'a [u8], all: &[&'a str]) -> &'a str {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Rank<'a> {
        host: &'a str,
        score: u8,
    }
    let ranks: Vec<Rank<'_>> = serde_json::from_slice(ranks).unwrap();
    ranks.iter().max_by_key(|rank| rank.score).map_or(all[0], |rank| rank.host)
}

/// Starts an extender; until it is ready.
async fn start(api: &ClusterApi, folder: &std::path::Path, named: &str) -> (Extender, Duration) {
    let began = Instant::now();
    let more = [OPEN, &["--named-nodes", named]].concat();
    let extender = Extender::start(api, folder, "bench", &more);
    while extender.ready().await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = began.elapsed();
    extender.leads().await;
    (extender, took)
}

/// Goals that were missed.
static MISSED: AtomicUsize = AtomicUsize::new(0);

/// A goal beside its figure, and whether it is met.
fn goal(wanted: &str, met: bool) -> String {
    MISSED.fetch_add(usize::from(!met), Ordering::Relaxed);
    format!("wanted {wanted}: {}", if met { "met" } else { "MISSED" })
}

/// `most`: p50 and p99 in milliseconds that are wanted. What p50 is.
fn show(what: &str, mut times: Vec<Duration>, most: Option<[f64; 2]>) -> f64 {
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
    let (p50, p99) = (at(50), at(99));
    let said = most.map_or(String::new(), |[half, most]| {
        format!("; {}", goal(&format!("{half} and {most}"), p50 <= half && p99 <= most))
    });
    println!("{what}: p50 {p50:.2} ms, p99 {p99:.2} ms ({} calls){said}", times.len());
    p50
}

async fn time(extender: &Extender, verb: &str, body: &Value, calls: usize) -> Vec<Duration> {
    let body = body.to_string().into_bytes();
    time_each(extender, verb, calls, |_| body.clone()).await
}

async fn time_each(
    extender: &Extender,
    verb: &str,
    calls: usize,
    body: impl Fn(usize) -> Vec<u8>,
) -> Vec<Duration> {
    let mut connection = Connection::open(extender.port).await.unwrap();
    let mut times = Vec::new();
    for call in 0..calls + 50 {
        let body = body(call);
        let began = Instant::now();
        let (code, _) = connection.ask(verb, &body).await.unwrap();
        assert_eq!(code, 200);
        if call >= 50 {
            times.push(began.elapsed());
        }
    }
    times
}

/// A cluster's size, and what is wanted of it.
struct Size {
    nodes: u64,
    pods: u64,
    filter: Option<[f64; 2]>,
    /// Seconds until it is ready.
    start: Option<f64>,
    /// MB.
    memory: Option<u64>,
}

/// What p50 of a filter is that every node serves.
async fn filters(size: &Size, folder: &std::path::Path) -> f64 {
    let (nodes, pods, most) = (size.nodes, size.pods, size.filter);
    let api = cluster(nodes, pods).await;
    let (extender, took) = start(&api, folder, "best").await;
    let took = took.as_secs_f64();
    let said = size.start.map_or(String::new(), |s| goal(&format!("{s} s"), took <= s));
    println!("-- {nodes} nodes of {GPUS} GPUs, {pods} pods: ready after {took:.2} s; {said}");
    let names: Vec<String> = (0..nodes).map(|node| format!("node-{node}")).collect();
    let ask = |limits: &[(&str, u64)]| json!({ "Pod": with_host(pod("team", "new", limits)), "Nodes": null, "NodeNames": names });
    let part = ask(&[("gpu", 1), ("memory-mib", 24576), ("share", 20)]);
    let p50 = show("filter, 24 GiB of a GPU", time(&extender, "/filter", &part, 1000).await, most);
    let whole = ask(&[("gpu", 1)]);
    show("filter, a whole GPU", time(&extender, "/filter", &whole, 1000).await, most);
    let four = ask(&[("gpu", 4), ("memory-mib", 8192)]);
    show("filter, 4 times 8 GiB", time(&extender, "/filter", &four, 1000).await, most);
    show("prioritize, 24 GiB of a GPU", time(&extender, "/prioritize", &part, 200).await, None);
    // A kind of pods that nobody asked for before, each time.
    let new = |call: usize| {
        let mib = 1024 + u64::try_from(call).unwrap();
        ask(&[("gpu", 1), ("memory-mib", mib), ("share", 20)]).to_string().into_bytes()
    };
    show("filter, ever new kinds", time_each(&extender, "/filter", 200, new).await, most);
    show("prioritize, ever new kinds", time_each(&extender, "/prioritize", 200, new).await, None);
    // What a quota limits of a model or of time is another on other nodes.
    let large = json!({ "gpus": 1_000_000, "share": 100_000_000 });
    api.put(
        "gpuquotas",
        json!({ "kind": "GpuQuota", "apiVersion": "gpuzone.dev/v1alpha1",
            "metadata": { "name": "all", "generation": 1 },
            "spec": { "namespaceSelector": {}, "limits": large,
                "models": [{ "model": "H100", "limits": large }] } }),
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    show("filter, 24 GiB, quota by model", time(&extender, "/filter", &part, 1000).await, most);
    let times = time(&extender, "/filter", &whole, 1000).await;
    show("filter, a whole GPU, quota by model", times, most);
    let (now, peak) = resident(extender.pid());
    let said = size.memory.map_or(String::new(), |mb| goal(&format!("{mb} MB"), peak <= mb));
    println!("resident memory: {now} MB, at its peak {peak} MB; {said}");
    p50
}

/// Pods one after the other through filter and prioritize, their binds beside each other, and about as many
/// nodes, from another one on each time, as kube-scheduler does it.
async fn pods_per_second(nodes: u64, pods: usize, named: &str, folder: &std::path::Path) {
    let api = cluster(nodes, 0).await;
    let (extender, _) = start(&api, folder, named).await;
    let names: Vec<String> = (0..nodes).map(|node| format!("node-{node}")).collect();
    let limits: &[(&str, u64)] = &[("gpu", 1), ("memory-mib", 1024), ("share", 1)];
    let new: Vec<Value> =
        (0..pods).map(|n| with_host(pod("team", &format!("new-{n}"), limits))).collect();
    new.iter().for_each(|pod| api.put("pods", pod.clone()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(64);
    let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(receiver));
    let binders = (0..16).map(|_| {
        let (receiver, port) = (std::sync::Arc::clone(&receiver), extender.port);
        tokio::spawn(async move {
            let mut connection = Connection::open(port).await.unwrap();
            let mut failed = 0;
            loop {
                let next = receiver.lock().await.recv().await;
                let Some(body) = next else { return failed };
                let (_, answer) = connection.ask("/bind", &body).await.unwrap();
                failed += usize::from(answer != br#"{"Error":""}"#);
            }
        })
    });
    let binders: Vec<_> = binders.collect();
    let mut connection = Connection::open(extender.port).await.unwrap();
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let (mut first, many) = (0, looked_for(names.len()));
    let before = (processor_time(extender.pid()), processor_time(std::process::id()));
    let began = Instant::now();
    for object in &new {
        // As cheap as can be: it is the extender that is looked at.
        let args = |names: &str| {
            format!(r#"{{"Pod":{object},"Nodes":null,"NodeNames":{names}}}"#).into_bytes()
        };
        let some: Vec<&str> =
            quoted.iter().cycle().skip(first).take(many).map(String::as_str).collect();
        first = (first + many) % names.len();
        let asked = args(&format!("[{}]", some.join(",")));
        let (_, filtered) = connection.ask("/filter", &asked).await.unwrap();
        let (text, passed) = passed(&filtered);
        let best = match passed.as_slice() {
            // A scheduler scores nothing then.
            [only] => (*only).to_owned(),
            several => {
                let (_, ranks) = connection.ask("/prioritize", &args(&text)).await.unwrap();
                best(&ranks, several).to_owned()
            }
        };
        let meta = &object["metadata"];
        let bind = json!({ "PodName": meta["name"], "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"], "Node": best });
        sender.send(bind.to_string().into_bytes()).await.unwrap();
    }
    drop(sender);
    let mut failed = 0;
    for binder in binders {
        failed += binder.await.unwrap();
    }
    let rate = pods as f64 / began.elapsed().as_secs_f64();
    let said = goal("2,000", rate >= 2000.0);
    println!(
        "-- {nodes} nodes, {many} of them asked about, {named} named: {rate:.0} pods/s through filter, prioritize and bind ({failed} of {pods} not bound at the first try); {said}"
    );
    let of = |pid, before: Duration| (processor_time(pid) - before).as_micros() / pods as u128;
    println!(
        "   processor time of a pod: {} µs of the extender, {} µs of API server and scheduler",
        of(extender.pid(), before.0),
        of(std::process::id(), before.1)
    );
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let folder = tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap();
        if std::env::args().any(|arg| arg == "pods") {
            for named in ["best", "ranked", "all"] {
                pods_per_second(1000, 4000, named, folder.path()).await;
            }
            return;
        }
        let small = Size {
            nodes: 1000,
            pods: 10_000,
            filter: Some([1.0, 3.0]),
            start: Some(2.0),
            memory: Some(60),
        };
        let of_thousand = filters(&small, folder.path()).await;
        let large = Size {
            nodes: 5000,
            pods: 50_000,
            filter: Some([4.0, 10.0]),
            start: None,
            memory: None,
        };
        filters(&large, folder.path()).await;
        let wide = Size { nodes: 10_000, filter: None, start: None, memory: None, ..small };
        let grown = filters(&wide, folder.path()).await / of_thousand;
        println!("-- from 1,000 to 10,000 nodes: {grown:.1} times; {}", goal("10", grown <= 10.0));
        pods_per_second(10, 4000, "best", folder.path()).await;
        pods_per_second(100, 4000, "best", folder.path()).await;
        pods_per_second(1000, 2000, "best", folder.path()).await;
    });
    let missed = MISSED.load(Ordering::Relaxed);
    if missed > 0 {
        println!("goals missed: {missed}");
        std::process::exit(1);
    }
}
