//! The extender, from its start to its end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::binder::Binder;
use crate::config::Config;
use crate::http::{App, health, verbs};
use crate::metrics::Metrics;
use crate::shared::Shared;
use crate::tls::{Files, TlsError, reload};
use crate::{feeds, follow, keeper, leader, reclaim, webhook};

/// How long requests that run may go on when it ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why the extender does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Anybody could bind pods.
    #[error(
        "without --tls-certificate, --tls-key and --client-ca whoever reaches {0} can bind pods; give them, or --insecure where a policy of the network lets nobody but the scheduler"
    )]
    Open(SocketAddr),
    /// No certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No way to the API server.
    #[error(
        "cannot tell how to reach the API server: {0}; in a pod it needs a service account, elsewhere --kubeconfig"
    )]
    Api(String),
    /// A port that is taken.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No signals.
    #[error("cannot set up the extender's process")]
    Process(#[source] io::Error),
}

/// Runs the extender until it is told to end.
///
/// # Errors
/// When it cannot start, or cannot listen.
pub async fn run(config: Config) -> Result<(), RunError> {
    if !config.insecure && config.client_ca.is_none() {
        return Err(RunError::Open(config.listen));
    }
    let client = client(&config).await?;
    let shared = Arc::new(Shared::new(config.settings()));
    let binder = Binder::new(Arc::clone(&shared), client.clone());
    let metrics = Arc::new(Metrics::default());
    let named = config.named_nodes;
    let offers = Arc::default();
    let app = App { shared: Arc::clone(&shared), binder: binder.clone(), metrics, offers, named };
    let (handle, probes, hook) = (Handle::new(), Handle::new(), Handle::new());
    let largest = usize::from(config.largest_request_mib) << 20;
    let identity = config.identity();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Process)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Process)?;
    let wake = Duration::from_millis(config.wake_milliseconds);
    let again = Duration::from_secs(config.pod_group_look_seconds);
    let work = async {
        tokio::join!(
            feeds::feed(Arc::clone(&shared), client.clone(), again),
            leader::elect(Arc::clone(&shared), client.clone(), identity.clone()),
            keeper::look_after(Arc::clone(&shared), binder),
            keeper::wake(Arc::clone(&shared), client.clone(), wake),
            keeper::publish(Arc::clone(&shared), client.clone()),
            follow(&config, &shared, &client),
            take_back(&config, &shared, &client),
        );
    };
    let ending = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("the extender ends; pods that run go on");
        leader::resign(&shared, client.clone(), &identity).await;
        handle.graceful_shutdown(Some(FAREWELL));
        hook.graceful_shutdown(Some(FAREWELL));
        probes.graceful_shutdown(Some(Duration::ZERO));
    };
    let doors = async {
        tokio::try_join!(
            open(config.listen, config.tls(), verbs(app.clone(), largest), handle.clone()),
            open_webhook(&config, &shared, hook.clone()),
            plain(config.health_listen, health(app), probes.clone()),
        )
    };
    // The doors close when it has resigned, and whoever asked has an answer; a door that cannot
    // be opened ends it at once.
    tokio::select! {
        served = doors => served.map(|_| ()),
        () = async { tokio::join!(work, ending); } => Ok(()),
    }
}

async fn follow(config: &Config, shared: &Arc<Shared>, client: &kube::Client) {
    if let Some(follower) = config.follower() {
        follow::follow(Arc::clone(shared), client.clone(), follower).await;
    }
}

async fn take_back(config: &Config, shared: &Arc<Shared>, client: &kube::Client) {
    if let Some(seconds) = config.reclaim_seconds {
        let patience = Duration::from_secs(seconds);
        reclaim::take_back(Arc::clone(shared), client.clone(), patience).await;
    }
}

async fn client(config: &Config) -> Result<kube::Client, RunError> {
    let unknown = |error: &dyn std::fmt::Display| RunError::Api(error.to_string());
    let client = match &config.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unknown(&error))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| unknown(&error))?
        }
        None => kube::Config::incluster().map_err(|error| unknown(&error))?,
    };
    kube::Client::try_from(client).map_err(|error| unknown(&error))
}

/// The API server shows no certificate unless it is configured to, so none is asked for here.
async fn open_webhook(
    config: &Config,
    shared: &Arc<Shared>,
    handle: Handle<SocketAddr>,
) -> Result<(), RunError> {
    // A door that is not there has closed: the process ends when all of them have.
    let Some(address) = config.webhook_listen else { return Ok(()) };
    let files = config.tls().map(|files| Files { clients: None, ..files });
    open(address, files, webhook::router(config.rules(), Arc::clone(shared)), handle).await
}

async fn open(
    address: SocketAddr,
    files: Option<Files>,
    router: Router,
    handle: Handle<SocketAddr>,
) -> Result<(), RunError> {
    let Some(files) = files else { return plain(address, router, handle).await };
    let tls = RustlsConfig::from_config(Arc::new(files.load()?));
    let reloading = tokio::spawn(reload(files, tls.clone()));
    let mut server = axum_server::bind_rustls(address, tls).handle(handle);
    bounded(server.http_builder());
    let served = server.serve(router.into_make_service()).await;
    reloading.abort();
    served.map_err(|source| RunError::Listen { address, source })
}

async fn plain(
    address: SocketAddr,
    router: Router,
    handle: Handle<SocketAddr>,
) -> Result<(), RunError> {
    let mut server = axum_server::bind(address).handle(handle);
    bounded(server.http_builder());
    let served = server.serve(router.into_make_service()).await;
    served.map_err(|source| RunError::Listen { address, source })
}

/// Nobody keeps a connection open by saying nothing; the scheduler lets go of an idle one after
/// 90 s, before this would cut it off in a request.
fn bounded(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    let timer = hyper_util::rt::TokioTimer::new();
    builder.http1().timer(timer).header_read_timeout(Duration::from_secs(120));
}
