//! What the plugin sees of an agent: placed leases, which a restart does not lose.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpuzone_api::placements::v1 as proto;
use gpuzone_api::placements::v1::placements_server::{Placements, PlacementsServer};
use gpuzone_api::{AgentError, ErrorKind};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

const RESERVED: &str = "reserved";
const ACTIVE: &str = "active";

#[derive(Default)]
struct Book {
    leases: Vec<proto::PlacedLease>,
    made: u32,
    /// Leases whose end has begun.
    ending: u32,
}

struct Shared {
    state: PathBuf,
    /// How long it takes until a new lease is active.
    start: Duration,
    /// How long the end of a lease takes.
    scrub: Duration,
    book: Mutex<Book>,
}

pub(crate) struct AgentModel {
    socket: PathBuf,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease that is asked for: it is there, or it is being made from now on.
    fn reserve(&self, asked: proto::PlaceRequest) -> Result<proto::PlacedLease, Status> {
        let mut book = self.lock();
        let here = |lease: &&proto::PlacedLease| {
            (&lease.slot, &lease.folder) == (&asked.slot, &asked.folder)
        };
        let of_holder = book.leases.iter().find(|lease| lease.holder == asked.holder);
        if let Some(lease) = of_holder.filter(here) {
            return Ok(lease.clone());
        }
        if of_holder.is_some() || book.leases.iter().any(|lease| here(&lease)) {
            return Err(refused(ErrorKind::InvalidRequest, "end that one first"));
        }
        book.made += 1;
        let lease = proto::PlacedLease {
            id: format!("lease-{}", book.made),
            holder: asked.holder,
            tenant: asked.tenant,
            gpus: asked.gpus,
            slot: asked.slot,
            folder: asked.folder,
            state: RESERVED.to_owned(),
            trouble: String::new(),
            program: asked.program,
            exposure: asked.exposure,
        };
        assert!(self.folder(&lease).is_dir(), "a lease appears where a container can look");
        book.leases.push(lease.clone());
        Ok(lease)
    }

    /// Waits until a lease is no longer on its way to be active, as whoever wants it next has to.
    async fn is_made(&self, id: &str) -> Option<proto::PlacedLease> {
        loop {
            let lease = self.lock().leases.iter().find(|lease| lease.id == id).cloned()?;
            if lease.state != RESERVED {
                return Some(lease);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn folder(&self, lease: &proto::PlacedLease) -> PathBuf {
        self.state.join("slots").join(&lease.slot).join(&lease.folder)
    }
}

impl AgentModel {
    /// One whose leases take so long to start and to end.
    pub(crate) fn new(folder: &Path, start: Duration, scrub: Duration) -> Self {
        let shared = Shared { state: folder.join("state"), start, scrub, book: Mutex::default() };
        let mut agent =
            Self { socket: folder.join("run/agent.sock"), shared: Arc::new(shared), server: None };
        agent.start();
        agent
    }

    fn start(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        let service = PlacementsServer::new(Service(Arc::clone(&self.shared)));
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        self.server = Some(tokio::spawn(async move { drop(server.await) }));
    }

    pub(crate) async fn set_away(&mut self, away: bool) {
        match (away, self.server.take()) {
            (true, Some(server)) => {
                server.abort();
                let _ = server.await;
            }
            (false, None) => self.start(),
            (_, server) => self.server = server,
        }
    }

    /// Where its slots are.
    pub(crate) fn state(&self) -> PathBuf {
        self.shared.state.clone()
    }

    pub(crate) fn leases(&self) -> Vec<proto::PlacedLease> {
        self.shared.lock().leases.clone()
    }

    /// How many leases' ends have begun and are not done.
    pub(crate) fn ending(&self) -> u32 {
        self.shared.lock().ending
    }
}

struct Service(Arc<Shared>);

fn refused(kind: ErrorKind, message: &str) -> Status {
    AgentError { kind, message: message.to_owned() }.into()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Placements for Service {
    async fn place(&self, request: Request<proto::PlaceRequest>) -> Answer<proto::PlaceReply> {
        let lease = self.0.reserve(request.into_inner())?;
        let (shared, id) = (Arc::clone(&self.0), lease.id.clone());
        // A caller that goes away is no reason to leave it half made.
        let made = tokio::spawn(async move {
            tokio::time::sleep(shared.start).await;
            if let Some(lease) = shared.lock().leases.iter_mut().find(|lease| lease.id == id) {
                ACTIVE.clone_into(&mut lease.state);
            }
        });
        made.await.unwrap();
        let lease = self.0.is_made(&lease.id).await;
        lease.map_or_else(
            || Err(refused(ErrorKind::Unavailable, "it is being ended")),
            |lease| Ok(Response::new(proto::PlaceReply { lease: Some(lease) })),
        )
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Answer<proto::ListReply> {
        Ok(Response::new(proto::ListReply { leases: self.0.lock().leases.clone() }))
    }

    async fn end(&self, request: Request<proto::EndRequest>) -> Answer<proto::EndReply> {
        let asked = request.into_inner();
        self.0.is_made(&asked.lease_id).await;
        // As a scrub takes: what a sweep knew before is old by then.
        self.0.lock().ending += 1;
        tokio::time::sleep(self.0.scrub).await;
        let mut book = self.0.lock();
        book.ending -= 1;
        book.leases.retain(|lease| lease.id != asked.lease_id);
        Ok(Response::new(proto::EndReply {}))
    }

    /// It has no devices that a container could have by itself.
    async fn condemn(&self, _: Request<proto::CondemnRequest>) -> Answer<proto::CondemnReply> {
        Err(Status::invalid_argument("no such device"))
    }

    async fn clear(&self, _: Request<proto::ClearRequest>) -> Answer<proto::ClearReply> {
        Err(Status::invalid_argument("no such device"))
    }
}
