//! HTTP, as little of it as a scraper needs.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::classic::classic;
use super::listen::Listener;
use super::source::Source;

/// More than these wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// A request's head is there within this, or its connection is closed.
const HEAD_LIMIT: Duration = Duration::from_secs(2);
/// All of a connection: a reader that takes its answer byte by byte is cut off, too.
const LIMIT: Duration = Duration::from_secs(10);
/// The smallest that hyper allows.
const BUFFER: usize = 8192;
const HEADERS: usize = 64;
/// Between two attempts when no connection can be taken.
const AGAIN: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// Serves the page until this future is dropped.
pub(crate) async fn serve(listener: Listener, source: Arc<Source>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Nobody closes it, so this is no error.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(converse(stream, Arc::clone(&source), place));
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(converse(stream, Arc::clone(&source), place));
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, most likely: those that are served go on.
            tracing::warn!(%error, "cannot accept a scraper's connection");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    source: Arc<Source>,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(|request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    // One request each: no connection is kept for later.
    http.keep_alive(false).max_buf_size(BUFFER).max_headers(HEADERS);
    let served = http.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LIMIT, served).await {
        Ok(Ok(())) => {}
        // Whoever sends nonsense must not fill the agent's log with it.
        Ok(Err(error)) => tracing::debug!(%error, "a scraper's connection broke"),
        Err(_) => tracing::debug!("a scraper took too long and was cut off"),
    }
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Answer {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics here\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "there is only GET here\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let asked = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let open = asked.is_some_and(|accept| accept.contains(OPEN_METRICS));
    match source.page().await {
        Ok(page) if open => typed(page, OPEN_METRICS_TYPE),
        Ok(page) => typed(classic(&page), CLASSIC_TYPE),
        Err(error) => {
            tracing::error!(%error, "no metrics");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the agent's log says why\n")
        }
    }
}

fn typed(text: String, kind: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = typed(text.to_owned(), CLASSIC_TYPE);
    *answer.status_mut() = status;
    answer
}
