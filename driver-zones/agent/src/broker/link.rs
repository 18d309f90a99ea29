use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gpuzone_broker::READY_TIMEOUT;
use gpuzone_core::LeaseId;
use gpuzone_wire::control::{LeaseStatus, MAX_LINE, Reply, Request, VERSION, WorkerOrder};
use gpuzone_wire::scrub::{ScrubOrder, ScrubReport};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// The broker answers within what a worker has to begin and to be ready, and a little.
const START_LIMIT: Duration =
    gpuzone_zone::START_LIMIT.saturating_add(READY_TIMEOUT).saturating_add(Duration::from_secs(10));
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The broker gives a scrub worker ten seconds more than its own limit.
const SCRUB_GRACE: Duration = Duration::from_secs(20);
const STATUS_LIMIT: Duration = Duration::from_secs(3);
/// Between two attempts while the broker is being replaced.
const AGAIN: Duration = Duration::from_millis(50);

/// The way to a broker. Each request has a connection of its own, so that a slow one keeps none
/// waiting, and a broker that was replaced is found by the next.
#[derive(Clone, Debug)]
pub struct BrokerLink {
    socket: PathBuf,
}

/// Why the broker did not do it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers, or the connection broke.
    #[error("the driver zone's broker does not answer: {0}")]
    Broken(#[source] io::Error),
    /// It takes too long.
    #[error("the driver zone's broker did not answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It said something else.
    #[error("the driver zone's broker gave an answer that makes no sense: {0}")]
    Nonsense(String),
}

impl BrokerLink {
    /// To the broker that serves `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The broker's process number, if one answers.
    ///
    /// # Errors
    /// When none answers, or one of another version.
    pub async fn hello(&self) -> Result<u32, LinkError> {
        let hello = async { Connection::open(&self.socket).await.map(|(_, pid)| pid) };
        timeout(STATUS_LIMIT, hello).await.unwrap_or(Err(LinkError::Slow(STATUS_LIMIT)))
    }

    /// Has the lease served; answers when its worker accepts connections.
    ///
    /// # Errors
    /// When it cannot be served; nothing of it is left then.
    pub async fn start(&self, order: WorkerOrder) -> Result<LeaseStatus, LinkError> {
        let leases = self.leases(&Request::Start(order), START_LIMIT).await?;
        leases.into_iter().next().ok_or_else(|| LinkError::Nonsense("no lease".to_owned()))
    }

    /// Ends the lease's worker; `None` when there was none.
    ///
    /// # Errors
    /// When the broker does not answer. The worker may live then.
    pub async fn stop(&self, lease: LeaseId) -> Result<Option<LeaseStatus>, LinkError> {
        let leases = self.leases(&Request::Stop { lease }, STOP_LIMIT).await?;
        Ok(leases.into_iter().next())
    }

    /// Has memory cleared; answers when it is known whether it is.
    ///
    /// # Errors
    /// When the broker does not answer, or cannot have it done.
    pub async fn scrub(&self, order: ScrubOrder) -> Result<Vec<ScrubReport>, LinkError> {
        let limit = Duration::from_millis(order.limit_ms).saturating_add(SCRUB_GRACE);
        match self.ask(&Request::Scrub(order), limit).await? {
            Reply::Scrubbed { reports } => Ok(reports),
            other => Err(nonsense(&other)),
        }
    }

    /// How all leases are doing.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn status(&self) -> Result<Vec<LeaseStatus>, LinkError> {
        self.leases(&Request::Status, STATUS_LIMIT).await
    }

    /// Says that ends of workers are written down.
    ///
    /// # Errors
    /// When the broker does not answer; it tells them again then.
    pub async fn acknowledge(&self, lease: LeaseId, through: u32) -> Result<(), LinkError> {
        self.leases(&Request::Acknowledge { lease, through }, STATUS_LIMIT).await.map(drop)
    }

    /// How leases did that ended and are not settled.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn ended(&self) -> Result<Vec<LeaseStatus>, LinkError> {
        self.leases(&Request::Ended, STATUS_LIMIT).await
    }

    /// Says that a lease's last usage and its end are written down.
    ///
    /// # Errors
    /// When the broker does not answer; it tells them again then.
    pub async fn settle(&self, lease: LeaseId) -> Result<(), LinkError> {
        self.leases(&Request::Settle { lease }, STATUS_LIMIT).await.map(drop)
    }

    /// Ends all workers and the broker.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn shutdown(&self) -> Result<(), LinkError> {
        match self.ask(&Request::Shutdown, STOP_LIMIT).await? {
            Reply::Bye => Ok(()),
            other => Err(nonsense(&other)),
        }
    }

    async fn leases(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Result<Vec<LeaseStatus>, LinkError> {
        match self.ask(request, limit).await? {
            Reply::Leases { leases } => Ok(leases),
            other @ (Reply::Hello { .. }
            | Reply::Bye
            | Reply::Scrubbed { .. }
            | Reply::Refused { .. }) => Err(nonsense(&other)),
        }
    }

    /// Asks until there is an answer. Asking again after a broken connection is safe: each
    /// request does the same when it is done twice.
    async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply, LinkError> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let asked = timeout(left, async {
                let (mut connection, _) = Connection::open(&self.socket).await?;
                connection.ask(request).await
            });
            match asked.await {
                Ok(Err(LinkError::Broken(_))) if left > AGAIN => sleep(AGAIN).await,
                Ok(Ok(Reply::Refused { reason })) => return Err(LinkError::Refused(reason)),
                Ok(other) => return other,
                Err(_) => return Err(LinkError::Slow(limit)),
            }
        }
    }
}

fn nonsense(reply: &Reply) -> LinkError {
    LinkError::Nonsense(format!("{reply:?}").chars().take(200).collect())
}

struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects and greets; also returns the broker's process number.
    async fn open(socket: &std::path::Path) -> Result<(Self, u32), LinkError> {
        let stream = UnixStream::connect(socket).await.map_err(LinkError::Broken)?;
        let served_by = stream.peer_cred().map_err(LinkError::Broken)?.pid();
        let mut connection = Self { stream: BufReader::new(stream) };
        match connection.ask(&Request::Hello { version: VERSION }).await? {
            // The agent may end that process: it is not for the broker to say which it is.
            Reply::Hello { version: VERSION, pid } if served_by == pid.try_into().ok() => {
                Ok((connection, pid))
            }
            Reply::Refused { reason } => Err(LinkError::Refused(reason)),
            other => Err(nonsense(&other)),
        }
    }

    async fn ask(&mut self, request: &Request) -> Result<Reply, LinkError> {
        let json = |error: serde_json::Error| LinkError::Nonsense(error.to_string());
        let mut line = serde_json::to_vec(request).map_err(json)?;
        line.push(b'\n');
        self.stream.write_all(&line).await.map_err(LinkError::Broken)?;
        line.clear();
        let mut bounded = (&mut self.stream).take(MAX_LINE as u64);
        bounded.read_until(b'\n', &mut line).await.map_err(LinkError::Broken)?;
        if line.is_empty() {
            return Err(LinkError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(json)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// What an agent says to a broker that gives `pid` for its number.
    async fn hello_from(pid: u32) -> Result<u32, LinkError> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let broker = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.read_line(&mut String::new()).await.unwrap();
            let reply = serde_json::to_string(&Reply::Hello { version: VERSION, pid }).unwrap();
            stream.write_all(format!("{reply}\n").as_bytes()).await.unwrap();
        };
        let link = BrokerLink::new(socket);
        tokio::join!(link.hello(), broker).0
    }

    #[tokio::test]
    async fn a_broker_that_gives_anothers_number_is_not_believed() {
        let own = std::process::id();
        assert_eq!(hello_from(own).await.unwrap(), own);
        for other in [0, 1, own + 1, u32::MAX] {
            assert!(matches!(hello_from(other).await, Err(LinkError::Nonsense(_))), "{other}");
        }
    }
}
