//! Being registered with the kubelet, however often either of us restarts.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gpuzone_api::check_socket_path;
use gpuzone_api::kubelet::v1beta1::RegisterRequest;
use gpuzone_api::kubelet::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use gpuzone_api::kubelet::v1beta1::registration_client::RegistrationClient;
use gpuzone_api::kubernetes::ResourceName;
use rustix::fs::inotify;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;

use crate::door::options;
use crate::links;
use crate::registrar::{Action, Event, Seen, SocketId, State, after};

const KUBELET_SOCKET: &str = "kubelet.sock";
const VERSION: &str = "v1beta1";
/// The kubelet answers a registration at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the folder is looked at when nothing in it changes: a folder may be made anew, and a
/// watch ends with its folder.
const LOOK: Duration = Duration::from_secs(1);

/// The kubelet asks what there is within milliseconds of a registration.
const UNHEARD: Duration = Duration::from_secs(5);

/// Why the kubelet does not know us yet.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error(
        "another process serves {}; only one device plugin may run on a node, so stop this one or the other, whatever their --state-dir is: this one waits until the other is gone", .0.display()
    )]
    Taken(PathBuf),
    #[error("cannot serve {}; the plugin needs to write in that folder: {source}", .path.display())]
    Serve { path: PathBuf, source: io::Error },
    #[error(
        "the kubelet does not take the plugin: {0}; it is tried again, and needs a kubelet that speaks v1beta1"
    )]
    Refused(String),
    #[error(
        "the kubelet does not answer within {PATIENCE:?}; it is tried again, and its log may say why"
    )]
    Slow,
}

/// Whether the kubelet has asked what there is since it was last told of us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// To be called when it asks.
    pub(crate) fn asked(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The service of one resource.
pub(crate) trait Served: DevicePlugin + Clone {
    /// What [`DevicePlugin::list_and_watch`] tells of its call.
    fn heard(&self) -> &Heard;

    /// Called before every registration: what was answered before it may be forgotten.
    fn registering(&self);
}

/// The registration of one resource.
pub(crate) struct Registration<D> {
    folder: PathBuf,
    endpoint: String,
    resource: ResourceName,
    door: D,
    server: Option<Server>,
    /// When the kubelet took us, until it has asked, or that it does not was said.
    unheard_since: Option<tokio::time::Instant>,
    notices: mpsc::Sender<String>,
}

/// What serves at our socket.
struct Server {
    /// Device and inode of the socket. They are no other file's as long as it is served.
    socket: (u64, u64),
    task: JoinHandle<()>,
}

/// Which file there is at a path.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// What there is at the path of our socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    /// A file that nobody answers at: what a plugin that was killed left.
    Left((u64, u64)),
    /// Somebody's socket.
    Served,
}

async fn what_is_at(path: &Path) -> There {
    let Some(file) = file_at(path) else { return There::Nothing };
    match UnixStream::connect(path).await.map_err(|error| error.kind()) {
        Err(io::ErrorKind::NotFound) => There::Nothing,
        Err(io::ErrorKind::ConnectionRefused) => There::Left(file),
        Ok(_) | Err(_) => There::Served,
    }
}

/// Makes our socket. What somebody made at its path after it was looked at stays, and is an error.
fn bind(path: &Path, there: There) -> io::Result<(UnixListener, (u64, u64))> {
    check_socket_path(path).map_err(io::Error::other)?;
    if let There::Left(left) = there
        && file_at(path) == Some(left)
    {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    let socket = file_at(path).ok_or(io::ErrorKind::NotFound)?;
    Ok((listener, socket))
}

impl<D> Registration<D> {
    fn own_socket(&self) -> PathBuf {
        self.folder.join(&self.endpoint)
    }

    /// Whether what is at our path is the socket that we serve, and no other plugin's.
    fn own_is_there(&self) -> bool {
        let own = self.server.as_ref().map(|server| server.socket);
        own.is_some() && own == file_at(&self.own_socket())
    }

    /// Ends serving. A socket that another plugin has put in the place of ours stays.
    fn stop(&mut self) {
        if self.own_is_there() {
            // The kubelet then knows at once that nobody serves it.
            let _ = std::fs::remove_file(self.own_socket());
        }
        if let Some(server) = self.server.take() {
            server.task.abort();
        }
    }
}

impl<D: Served> Registration<D> {
    /// `notices` takes what people should know of the kubelet.
    pub(crate) fn new(
        folder: &Path,
        resource: ResourceName,
        door: D,
        notices: &mpsc::Sender<String>,
    ) -> Self {
        let endpoint = format!("{}.sock", resource.as_str().replace('/', "_"));
        let (folder, notices) = (folder.to_owned(), notices.clone());
        Self { folder, endpoint, resource, door, server: None, unheard_since: None, notices }
    }

    /// Registers for ever.
    pub(crate) async fn keep(mut self) {
        let mut state = State::Waiting;
        let mut events = std::collections::VecDeque::new();
        let mut rest: Option<tokio::time::Instant> = None;
        let mut watch = Watch::of(&self.folder);
        let mut said = None;
        loop {
            self.say_what_hides(&mut said);
            self.say_that_nobody_asks();
            let event = events.pop_front().unwrap_or_else(|| Event::Looked(self.look()));
            let (next, action) = after(state, event);
            if next != state {
                tracing::debug!(?state, ?event, ?next, "registration");
            }
            state = next;
            if state == State::Waiting {
                self.unheard_since = None;
            }
            match action {
                Action::Register => events.push_back(self.register().await),
                Action::Rest(pause) => rest = Some(tokio::time::Instant::now() + pause),
                Action::Nothing => {}
            }
            if !events.is_empty() {
                continue;
            }
            if watch.is_none() {
                watch = Watch::of(&self.folder);
            }
            let rested = async {
                match rest {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = rested => {
                    rest = None;
                    events.push_back(Event::Rested);
                }
                () = changed(&mut watch) => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// A folder that is not there yet comes with the kubelet; one that cannot be looked into is
    /// somebody's mistake. It is said once.
    fn say_what_hides(&self, said: &mut Option<io::ErrorKind>) {
        let hidden = std::fs::read_dir(&self.folder).err();
        let hidden = hidden.filter(|error| error.kind() != io::ErrorKind::NotFound);
        let kind = hidden.as_ref().map(io::Error::kind);
        if kind != *said {
            *said = kind;
            if let Some(error) = hidden {
                let folder = self.folder.display();
                tracing::error!(
                    %folder, %error,
                    "cannot look into the kubelet's folder; run the plugin as a user who can, and check --kubelet-dir"
                );
            }
        }
    }

    /// A kubelet that took us and never asks what there is: the node has none of the resource, and
    /// neither of the two would say why. It is said once for each registration.
    fn say_that_nobody_asks(&mut self) {
        let Some(since) = self.unheard_since else { return };
        if !self.door.heard().0.load(Ordering::Relaxed) {
            if since.elapsed() < UNHEARD {
                return;
            }
            let notice = format!(
                "the kubelet registered {} and has not asked for its devices (ListAndWatch) within {UNHEARD:?}, so the node has none; look for listAndWatch in the kubelet's log, then restart the kubelet; one of before Kubernetes 1.26 cannot speak with this plugin and has to be a newer one",
                self.resource
            );
            tracing::error!("{notice}");
            // Where so many wait already, the API server is away.
            let _ = self.notices.try_send(notice);
        }
        self.unheard_since = None;
    }

    fn look(&self) -> Seen {
        let kubelet = std::fs::metadata(self.folder.join(KUBELET_SOCKET)).ok();
        let kubelet = kubelet.filter(|found| found.file_type().is_socket()).map(|found| SocketId {
            inode: found.ino(),
            made: found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec()),
        });
        Seen { kubelet, own: self.own_is_there() }
    }

    async fn register(&mut self) -> Event {
        let registered = match self.serve().await {
            Ok(()) => self.call().await,
            Err(error) => Err(error),
        };
        match registered {
            Ok(()) => {
                tracing::info!(resource = %self.resource, "registered");
                self.unheard_since = Some(tokio::time::Instant::now());
                Event::Taken
            }
            Err(error) => {
                tracing::error!(resource = %self.resource, %error, "not registered");
                Event::Refused
            }
        }
    }

    /// Serves at a fresh socket: what an earlier plugin left is replaced, and what another one
    /// serves is not.
    async fn serve(&mut self) -> Result<(), RegisterError> {
        self.stop();
        let path = self.own_socket();
        let there = what_is_at(&path).await;
        if there == There::Served {
            return Err(RegisterError::Taken(path));
        }
        let (listener, socket) = bind(&path, there)
            .map_err(|source| RegisterError::Serve { path: path.clone(), source })?;
        let server = tonic::transport::Server::builder()
            .add_service(DevicePluginServer::new(self.door.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the plugin's socket broke");
            }
        });
        self.server = Some(Server { socket, task });
        Ok(())
    }

    async fn call(&self) -> Result<(), RegisterError> {
        self.door.registering();
        self.door.heard().0.store(false, Ordering::Relaxed);
        let mut kubelet =
            RegistrationClient::new(links::channel(&self.folder.join(KUBELET_SOCKET)));
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: self.endpoint.clone(),
            resource_name: self.resource.to_string(),
            options: Some(options()),
        };
        match tokio::time::timeout(PATIENCE, kubelet.register(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(RegisterError::Refused(status.message().to_owned())),
            Err(_) => Err(RegisterError::Slow),
        }
    }
}

impl<D> Drop for Registration<D> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A watch of a folder's entries.
struct Watch {
    changes: mpsc::Receiver<()>,
}

impl Watch {
    /// `None` where there is no such folder, or no watch to be had: then looking from time to
    /// time has to do.
    fn of(folder: &Path) -> Option<Self> {
        use inotify::{CreateFlags, WatchFlags};
        let fd = inotify::init(CreateFlags::CLOEXEC).ok()?;
        let changes = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, folder, changes).ok()?;
        let (changed, changes) = mpsc::channel(1);
        // A thread that waits in the kernel; it ends with the watch, or with the process.
        let waiting = std::thread::Builder::new().name("kubelet-folder".to_owned());
        waiting.spawn(move || tell_changes(&fd, &changed)).ok()?;
        Some(Self { changes })
    }
}

/// Tells of changes until the folder is gone, or nobody listens.
fn tell_changes(fd: &OwnedFd, changed: &mpsc::Sender<()>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => return,
            // What is not taken yet stands for this change, too.
            Ok(_) => match changed.try_send(()) {
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Closed(())) => return,
            },
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

async fn changed(watch: &mut Option<Watch>) {
    let goes_on = match watch {
        Some(watch) => watch.changes.recv().await.is_some(),
        None => std::future::pending().await,
    };
    if !goes_on {
        *watch = None;
    }
}
