//! The real program, over the stand-in of an API server.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use gpuzone_api::kubernetes::{Access, SCHEDULER_EXT_ACCESS, SCHEDULER_EXT_OWN_ACCESS};
use gpuzone_testkit::kubernetes::ClusterApi;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use super::{gpu_uuid, status};

const LIMIT: Duration = Duration::from_secs(60);

/// A port that nobody listens on. It is below those that the kernel gives connections, of which one would have it by the
/// time that the program it is for listens; each process of tests begins elsewhere.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 1000).unwrap() * 20;
    let ports = (0..20_000).map(|_| NEXT.fetch_add(1, Ordering::Relaxed));
    let mut ports = ports.map(|next| 12_000 + (first + next % 20_000) % 20_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// One connection that is kept, as the scheduler keeps its own.
pub(crate) struct Connection(BufStream<TcpStream>);

impl Connection {
    pub(crate) async fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufStream::with_capacity(1 << 16, 1 << 16, stream)))
    }

    pub(crate) async fn ask(&mut self, verb: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let head = format!(
            "{method} {verb} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(head.as_bytes()).await?;
        self.0.write_all(body).await?;
        self.0.flush().await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let gone = || std::io::Error::other("the connection ended");
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(gone)?;
        let mut length = 0;
        loop {
            line.clear();
            if self.0.read_line(&mut line).await? == 0 {
                return Err(gone());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(text) = lower.strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok((code, body))
    }
}

/// What its service account may.
pub(crate) const ROLES: [&[Access]; 2] = [SCHEDULER_EXT_ACCESS, SCHEDULER_EXT_OWN_ACCESS];

/// Where a replica answers the scheduler.
#[derive(Clone, Copy)]
pub(crate) struct Door(u16);

impl Door {
    pub(crate) async fn ask(self, verb: &str, body: &Value) -> (u16, Value) {
        let asked = async {
            let mut connection = Connection::open(self.0).await?;
            let body = if body.is_null() { String::new() } else { body.to_string() };
            connection.ask(verb, body.as_bytes()).await
        };
        match asked.await {
            Ok((code, body)) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                (code, serde_json::from_slice(&body).unwrap_or(json!(text)))
            }
            Err(error) => (0, json!(error.to_string())),
        }
    }

    /// Nodes that serve a pod.
    pub(crate) async fn filter(self, pod: &Value, nodes: &[&str]) -> Value {
        self.ask("/filter", &json!({ "Pod": pod, "Nodes": null, "NodeNames": nodes })).await.1
    }

    /// Why a pod is not bound; empty when it is.
    pub(crate) async fn bind(self, pod: &Value, node: &str) -> String {
        let meta = &pod["metadata"];
        let args = json!({ "PodName": meta["name"], "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"], "Node": node });
        let (code, answer) = self.ask("/bind", &args).await;
        match answer["Error"].as_str() {
            Some(error) => error.to_owned(),
            None => format!("{code} {answer}"),
        }
    }
}

/// A replica. Dropping it kills it.
pub(crate) struct Extender {
    command: Command,
    child: Child,
    pub(crate) port: u16,
    health: u16,
    log: PathBuf,
}

impl Extender {
    pub(crate) fn start(api: &ClusterApi, folder: &Path, name: &str, more: &[&str]) -> Self {
        Self::over(&api.kubeconfig(folder).unwrap(), folder, name, more)
    }

    /// Over the API server that a kubeconfig names.
    pub(crate) fn over(kubeconfig: &Path, folder: &Path, name: &str, more: &[&str]) -> Self {
        let (port, health) = (free_port(), free_port());
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-scheduler-ext"));
        command.args(["--insecure", "--identity", name, "--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--health-listen", &format!("127.0.0.1:{health}")]);
        command.arg("--kubeconfig").arg(kubeconfig).args(more);
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().unwrap();
        Self { command, child, port, health, log }
    }

    /// Another one in its place, at the same ports, after this one was killed.
    pub(crate) fn kill_and_start_anew(&mut self) {
        self.kill();
        self.child = self.command.spawn().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What a probe is told.
    pub(crate) async fn ready(&self) -> (u16, String) {
        self.probe("/readyz").await
    }

    pub(crate) async fn metrics(&self) -> String {
        self.probe("/metrics").await.1
    }

    /// Empty when nobody answers: one that was started anew is not there at once.
    async fn probe(&self, path: &str) -> (u16, String) {
        let asked = async { Connection::open(self.health).await?.ask(path, b"").await };
        let (code, body) = asked.await.unwrap_or_default();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    pub(crate) async fn leads(&self) {
        until("it leads", || self.log(), async || self.ready().await.1 == "leading").await;
    }

    /// Waits until it answers the scheduler.
    pub(crate) async fn leads_or_stands(&self) {
        until("it is ready", || self.log(), async || self.ready().await.0 == 200).await;
    }

    /// Waits until it knows the pod of `team`.
    pub(crate) async fn knows(&self, pod: &str) {
        let path = format!("/explain/team/{pod}");
        let known = async || self.ask(&path, &Value::Null).await.0 == 200;
        until("it is known", || self.log(), known).await;
    }

    pub(crate) fn door(&self) -> Door {
        Door(self.port)
    }

    pub(crate) async fn ask(&self, verb: &str, body: &Value) -> (u16, Value) {
        self.door().ask(verb, body).await
    }

    /// Nodes that serve a pod.
    pub(crate) async fn filter(&self, pod: &Value, nodes: &[&str]) -> Value {
        self.door().filter(pod, nodes).await
    }

    /// Why a pod is not bound; empty when it is.
    pub(crate) async fn bind(&self, pod: &Value, node: &str) -> String {
        self.door().bind(pod, node).await
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As the kubelet does.
    pub(crate) fn tell_to_end(&self) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Whether nothing of it runs any more.
    pub(crate) fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    /// Ends it as the kubelet does, and waits until it has ended.
    pub(crate) fn terminate(&mut self) {
        self.tell_to_end();
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Extender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn until(
    what: &str,
    log: impl Fn() -> String,
    mut holds: impl AsyncFnMut() -> bool,
) {
    let end = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}\n{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A cluster with the namespace `team` and nodes `n1`, `n2`… of so many GPUs of 16 GiB.
pub(crate) async fn cluster(nodes: u8, gpus: u8) -> ClusterApi {
    let api = ClusterApi::start().await.unwrap();
    api.allow_only(&ROLES);
    for name in ["team", "default", "other"] {
        api.put(
            "namespaces",
            json!({ "kind": "Namespace", "apiVersion": "v1",
            "metadata": { "name": name, "labels": { "team": name } } }),
        );
    }
    for n in 1..=nodes {
        add_node(&api, &format!("n{n}"), n, gpus);
    }
    api
}

pub(crate) fn add_node(api: &ClusterApi, name: &str, n: u8, gpus: u8) {
    api.put("nodes", json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name } }));
    api.put(
        "gpunodes",
        json!({ "kind": "GpuNode", "apiVersion": "gpuzone.dev/v1alpha1",
        "metadata": { "name": name }, "spec": { "node": name }, "status": status(n, gpus, 16) }),
    );
}

/// What pods hold of each GPU, as the API server has it; panics when two hold the same.
pub(crate) fn held(api: &ClusterApi) -> std::collections::BTreeMap<String, u64> {
    let mut held = std::collections::BTreeMap::new();
    for pod in api.list("pods") {
        let Some(placement) = super::view(&pod).placement else { continue };
        for grant in placement.containers().flat_map(|(_, placed)| placed.grants()) {
            *held.entry(grant.gpu.to_string()).or_default() += grant.memory.get();
        }
    }
    for (gpu, memory) in &held {
        assert!(*memory <= 16 * super::GIB, "{gpu} is held twice: {memory}");
    }
    let _ = gpu_uuid;
    held
}
