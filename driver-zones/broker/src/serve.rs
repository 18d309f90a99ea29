//! The control socket: requests in, replies out, a line each.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use gpuzone_wire::control::{LeaseStatus, MAX_LINE, Reply, Request, VERSION};
use gpuzone_zone::files::remove;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::broker::Broker;

/// Binds the control socket; one that an earlier broker left is replaced. The caller has the
/// zone's lock.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// What answers the agent.
pub(crate) trait Answers: Send + Sync + 'static {
    /// The answer to a request of a connection that said hello.
    fn answer(self: &Arc<Self>, request: Request) -> impl Future<Output = Reply> + Send;
}

/// Serves until one connection asks for the end.
pub(crate) async fn serve(broker: Arc<impl Answers>, listener: UnixListener) -> io::Result<()> {
    let (ended, mut end) = mpsc::channel(1);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: those that are served go on.
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            _ = end.recv() => return Ok(()),
        };
        let (broker, ended) = (Arc::clone(&broker), ended.clone());
        tokio::spawn(async move {
            match converse(&broker, stream).await {
                Ok(After::Close) => {}
                // Full means that another asked first.
                Ok(After::End) => drop(ended.try_send(())),
                Err(error) => tracing::warn!(%error, "a connection of the agent's broke"),
            }
        });
    }
}

enum After {
    Close,
    End,
}

async fn converse(broker: &Arc<impl Answers>, stream: UnixStream) -> io::Result<After> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut greeted = false;
    loop {
        let mut line = Vec::new();
        // One byte more than allowed, so that a longer line is seen to be one.
        (&mut reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(After::Close);
        }
        let (reply, last) = match understand(&line, greeted) {
            Ok(request) => {
                greeted = true;
                let last = matches!(request, Request::Shutdown);
                (broker.answer(request).await, last)
            }
            Err(reason) => (Reply::Refused { reason }, true),
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
        match (reply, last) {
            (Reply::Bye, _) => return Ok(After::End),
            (_, true) => return Ok(After::Close),
            (_, false) => {}
        }
    }
}

/// The request in a line, or why it is none.
fn understand(line: &[u8], greeted: bool) -> Result<Request, String> {
    if line.len() > MAX_LINE {
        return Err(format!("a request has at most {MAX_LINE} bytes"));
    }
    let request = serde_json::from_slice(line)
        .map_err(|error| format!("this is no request of protocol {VERSION}: {error}"))?;
    match request {
        Request::Hello { version } if version != VERSION => Err(format!(
            "this broker speaks protocol {VERSION} and the agent {version}; end all leases with the agent that started it, then start the new one"
        )),
        Request::Hello { .. } => Ok(request),
        Request::Start(_)
        | Request::Stop { .. }
        | Request::Ended
        | Request::Settle { .. }
        | Request::Scrub(_)
        | Request::Status
        | Request::Acknowledge { .. }
        | Request::Shutdown => match greeted {
            true => Ok(request),
            false => Err("the first request says hello and its version".to_owned()),
        },
    }
}

impl Answers for Broker {
    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        match request {
            Request::Hello { version: _ } => {
                Reply::Hello { version: VERSION, pid: std::process::id() }
            }
            Request::Start(order) => {
                let lease = order.lease;
                match self.start(order).await {
                    Ok(status) => leases(vec![status]),
                    Err(error) => {
                        tracing::error!(%lease, %error, "cannot be served");
                        Reply::Refused { reason: error.to_string() }
                    }
                }
            }
            Request::Stop { lease } => leases(self.stop(lease).await.into_iter().collect()),
            Request::Ended => leases(self.ended()),
            Request::Settle { lease } => {
                self.settle(lease);
                leases(Vec::new())
            }
            Request::Scrub(order) => {
                let lease = order.lease;
                match self.scrub(order).await {
                    Ok(reports) => Reply::Scrubbed { reports },
                    Err(error) => {
                        tracing::error!(%lease, %error, "what it gave back is not shown to be clear");
                        Reply::Refused { reason: error.to_string() }
                    }
                }
            }
            Request::Status => leases(self.status()),
            Request::Acknowledge { lease, through } => {
                self.acknowledge(lease, through);
                leases(Vec::new())
            }
            Request::Shutdown => {
                self.stop_all().await;
                Reply::Bye
            }
        }
    }
}

/// The answer to all that is asked about leases.
fn leases(leases: Vec<LeaseStatus>) -> Reply {
    Reply::Leases { leases }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines that are nearly requests.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            Just("{\"request\":\"status\"}"),
            Just("{\"request\":\"shutdown\"}"),
            Just("{\"request\":\"hello\",\"version\":1}"),
            Just("{\"request\":\"hello\",\"version\":4294967296}"),
            Just("{\"request\":\"stop\",\"lease\":\"lease-00000000000000000000000000000000\"}"),
            Just("{\"request\":\"start\",\"lease\":7}"),
        ];
        let near = (text, any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
        let near = near.prop_map(|(text, at, with, change)| {
            let mut line = text.as_bytes().to_vec();
            let at = at.index(line.len());
            if change {
                line[at] = with;
            }
            line
        });
        prop_oneof![3 => near, 1 => proptest::collection::vec(any::<u8>(), 0..300)]
    }

    proptest! {
        #[test]
        fn a_line_is_a_request_or_is_refused_and_nothing_comes_before_hello(line in lines()) {
            let is_hello = |request: &Request| matches!(request, Request::Hello { .. });
            if let Ok(request) = understand(&line, false) {
                prop_assert!(is_hello(&request), "{request:?}");
            }
            match (understand(&line, true), serde_json::from_slice::<Request>(&line)) {
                (Ok(understood), Ok(read)) => prop_assert_eq!(understood, read),
                (Err(reason), _) => prop_assert!(!reason.is_empty()),
                (Ok(understood), Err(_)) => panic!("{understood:?} out of nothing"),
            }
        }
    }
}
