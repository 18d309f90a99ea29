//! An agent that makes leases of nothing, writes down what it is asked, and fails on demand:
//! for what is the command's own affair.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_api::agent::v1::agent_server::{Agent, AgentServer};
use gpuzone_api::agent::v1::*;
use gpuzone_api::{AGENT_SOCKET, AgentError};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// The one lease that it knows.
pub(crate) const LEASE: &str = "lease-00000000000000000000000000000001";

#[derive(Debug, Default)]
struct State {
    asked: Vec<String>,
    refusal: Option<AgentError>,
    never_answers: bool,
}

/// A running fake; it ends with the folder's owner.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::<Mutex<State>>::default();
        let service = AgentServer::new(Service(Arc::clone(&state)));
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(folder.path().join(AGENT_SOCKET)).unwrap()
        };
        let router = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
        Self { folder, state, _runtime: runtime }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `gpu-zone` for this agent.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone"));
        command.env("GPUZONE_RUN_DIR", self.folder.path()).args(arguments);
        command.env("GPUZONE_STATE_DIR", self.folder.path());
        command
    }

    /// What was asked so far, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        locked(&self.state).asked.clone()
    }

    /// Waits until it was asked `what`.
    pub(crate) fn wait_for(&self, what: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.asked().iter().any(|asked| asked == what) {
            assert!(Instant::now() < end, "nobody asked '{what}': {:?}", self.asked());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// From now on every lease is refused so.
    pub(crate) fn refuse(&self, refusal: AgentError) {
        locked(&self.state).refusal = Some(refusal);
    }

    /// From now on requests for leases are heard and not answered.
    pub(crate) fn never_answer(&self) {
        locked(&self.state).never_answers = true;
    }
}

impl Service {
    fn hear(&self, what: String) {
        locked(&self.0).asked.push(what);
    }
}

fn lease() -> Lease {
    Lease { id: LEASE.into(), tenant: "acme".into(), state: "active".into(), ..Default::default() }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Agent for Service {
    async fn describe(&self, _: Request<DescribeRequest>) -> Answer<DescribeReply> {
        Ok(Response::new(DescribeReply::default()))
    }

    async fn list_gpus(&self, _: Request<ListGpusRequest>) -> Answer<ListGpusReply> {
        Ok(Response::new(ListGpusReply::default()))
    }

    type WatchGpusStream = tokio_stream::Empty<Result<WatchGpusReply, Status>>;

    async fn watch_gpus(&self, _: Request<WatchGpusRequest>) -> Answer<Self::WatchGpusStream> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn list_devices(&self, _: Request<ListDevicesRequest>) -> Answer<ListDevicesReply> {
        Ok(Response::new(ListDevicesReply::default()))
    }

    async fn create_lease(&self, request: Request<CreateLeaseRequest>) -> Answer<CreateLeaseReply> {
        let asked = request.into_inner();
        self.hear(format!(
            "create {} {:?} {:?} {} {:?} {}",
            asked.tenant,
            asked.memory_bytes,
            asked.share_percent,
            asked.gpus,
            asked.model,
            asked.program
        ));
        if locked(&self.0).never_answers {
            std::future::pending::<()>().await;
        }
        if let Some(refusal) = locked(&self.0).refusal.clone() {
            return Err(refusal.into());
        }
        let slot = HashMap::from([("GPUZONE_SLOT".to_owned(), "/the/slot".to_owned())]);
        let library_dir = "/the/shim".to_owned();
        Ok(Response::new(CreateLeaseReply {
            lease: Some(lease()),
            environment: slot,
            library_dir,
            ..Default::default()
        }))
    }

    async fn list_leases(&self, _: Request<ListLeasesRequest>) -> Answer<ListLeasesReply> {
        let program = "evil \u{1b}[2J".to_owned();
        let leases = vec![Lease { program, ..lease() }];
        Ok(Response::new(ListLeasesReply { leases }))
    }

    async fn end_lease(&self, request: Request<EndLeaseRequest>) -> Answer<EndLeaseReply> {
        self.hear(format!("end {}", request.into_inner().lease_id));
        Ok(Response::new(EndLeaseReply { lease: Some(lease()) }))
    }

    async fn clear_quarantine(
        &self,
        request: Request<ClearQuarantineRequest>,
    ) -> Answer<ClearQuarantineReply> {
        self.hear(format!("clear {}", request.into_inner().gpu));
        Ok(Response::new(ClearQuarantineReply::default()))
    }

    async fn flush_usage(&self, _: Request<FlushUsageRequest>) -> Answer<FlushUsageReply> {
        Ok(Response::new(FlushUsageReply::default()))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownReply> {
        Ok(Response::new(ShutdownReply::default()))
    }
}
