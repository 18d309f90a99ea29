//! A stand-in of a cluster's API server for whoever reads and writes many kinds of objects.
//!
//! It keeps JSON objects of any kind, lists them in pages, watches from a version on, creates,
//! replaces with the check of the version, patches, and binds pods as the real one was seen to:
//! node and annotations in one write, 409 for the second Binding and for another UID, and no
//! other check. It can be away, and Bindings can fail or lose their answer.

mod serve;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use gpuzone_api::kubernetes::Access;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Used;
use super::access::{self, Gate};
use crate::HarnessError;
use store::Store;

/// What goes wrong with one Binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindFault {
    /// Nothing.
    None,
    /// It is not carried out, and an error is answered.
    Refuse,
    /// It is carried out, and an error is answered.
    LoseAnswer,
    /// It is not carried out, and never will be: something that is asked first forbids it.
    Forbid,
    /// An error is answered, and it is carried out after so long, whoever is still there; not when that
    /// is longer than the request is to take.
    Late(Duration),
    /// It is carried out after so long, and answered then; not when that is longer than the request is to
    /// take.
    Slow(Duration),
}

/// The stand-in. Dropping it ends it.
#[derive(Debug)]
pub struct ClusterApi {
    shared: Arc<Shared>,
    server: JoinHandle<()>,
    port: u16,
}

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    store: Mutex<Store>,
    changes: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changes.send_modify(|version| *version += 1);
        changed
    }
}

impl ClusterApi {
    /// Starts one without any object.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> Result<Self, HarnessError> {
        let (store, changes) = (Mutex::default(), watch::Sender::new(0));
        let shared = Arc::new(Shared { gate: Arc::default(), store, changes });
        let gate = Arc::clone(&shared.gate);
        let check = axum::middleware::from_fn_with_state(gate, access::check);
        let router = Router::new().fallback(serve::handle).with_state(Arc::clone(&shared));
        let router = router.layer(check);
        let failed = || HarnessError::io("cannot serve a cluster's stand-in");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(failed())?;
        let port = listener.local_addr().map_err(failed())?.port();
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { shared, server, port })
    }

    /// Writes a kubeconfig for it into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf, HarnessError> {
        let path = folder.join("kubeconfig");
        let server = format!("http://127.0.0.1:{}", self.port);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": server } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "users": [{ "name": "test", "user": {} }],
        });
        std::fs::write(&path, config.to_string())
            .map_err(HarnessError::io(format!("cannot write {}", path.display())))?;
        Ok(path)
    }

    /// Refuses, from now on, what these roles do not allow.
    pub fn allow_only(&self, role: &[&[Access]]) {
        self.shared.gate.allow_only(&role.concat());
    }

    /// What was done so far, refused or not.
    pub fn used(&self) -> BTreeSet<Used> {
        self.shared.gate.used()
    }

    /// Puts an object of a kind (`pods`) in its place, whatever was there.
    pub fn put(&self, plural: &str, object: Value) {
        self.shared.change(|store| store.put(plural, object));
    }

    /// An object by `name` or `namespace/name`.
    pub fn get(&self, plural: &str, key: &str) -> Option<Value> {
        self.shared.lock().get(plural, key).map(|object| (**object).clone())
    }

    /// Changes an object, if it is there.
    pub fn change(&self, plural: &str, key: &str, change: impl FnOnce(&mut Value)) {
        self.shared.change(|store| {
            if let Some(object) = store.get(plural, key) {
                let mut object = (**object).clone();
                change(&mut object);
                store.put(plural, object);
            }
        });
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, plural: &str, key: &str) {
        self.shared.change(|store| store.delete(plural, key));
    }

    /// All objects of a kind.
    pub fn list(&self, plural: &str) -> Vec<Value> {
        let store = self.shared.lock();
        let of = store.objects.iter().filter(|((kind, _), _)| kind == plural);
        of.map(|(_, object)| (**object).clone()).collect()
    }

    /// Whether it answers nobody, from now on.
    pub fn set_away(&self, away: bool) {
        self.shared.change(|store| store.away = away);
    }

    /// How long it takes over each answer, from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Whether it knows no objects of a kind, from now on: their definition is not installed.
    pub fn withhold(&self, plural: &str, withheld: bool) {
        self.shared.change(|store| match withheld {
            true => store.withheld.insert(plural.to_owned()),
            false => store.withheld.remove(plural),
        });
    }

    /// What goes wrong with the next Bindings, one after the other.
    pub fn fault_bindings(&self, faults: impl IntoIterator<Item = BindFault>) {
        self.shared.lock().faults.extend(faults);
    }

    /// Refuses the next patches of a kind with these codes, one after the other.
    pub fn refuse_patches(&self, plural: &str, codes: impl IntoIterator<Item = u16>) {
        self.shared.lock().unpatched.entry(plural.to_owned()).or_default().extend(codes);
    }

    /// Whether a disruption budget keeps a pod, from now on.
    pub fn protect(&self, key: &str, protected: bool) {
        let mut store = self.shared.lock();
        match protected {
            true => store.protected.insert(key.to_owned()),
            false => store.protected.remove(key),
        };
    }

    /// All Bindings that were carried out: pod and node.
    pub fn bindings(&self) -> Vec<(String, String)> {
        self.shared.lock().bound.clone()
    }

    /// How late after it came a Binding might have been carried out.
    pub fn latest_binding(&self) -> Duration {
        self.shared.lock().longest
    }

    /// How often a kind was written to by a verb: `create`, `update` or `patch`.
    pub fn writes(&self, verb: &str, plural: &str) -> u64 {
        let key = (verb.to_owned(), plural.to_owned());
        self.shared.lock().writes.get(&key).copied().unwrap_or_default()
    }
}

impl Drop for ClusterApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}
