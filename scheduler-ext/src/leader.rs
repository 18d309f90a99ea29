//! Keeps, takes and gives back the Lease, and says what this replica is.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::election::{Election, Record, Step};
use crate::shared::{Role, Shared};

/// How often the Lease is looked at, and written by whoever holds it.
const BEAT: Duration = Duration::from_millis(1000);
const PATIENCE: Duration = Duration::from_secs(3);

/// What the Lease is called, and by whom.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The Lease's namespace.
    pub(crate) namespace: String,
    /// The Lease's name.
    pub(crate) lease: String,
    /// This replica.
    pub(crate) me: String,
    /// How long a leader that is gone keeps others out.
    pub(crate) duration: Duration,
}

/// Takes part in the election for ever.
pub(crate) async fn elect(shared: Arc<Shared>, client: Client, identity: Identity) {
    let leases: Api<Lease> = Api::namespaced(client, &identity.namespace);
    let mut election = Election::new(identity.me.clone(), identity.duration);
    loop {
        if *shared.role.borrow() == Role::Ending {
            return;
        }
        let beat = tokio::time::timeout(PATIENCE, beat(&leases, &mut election, &identity, &shared));
        let holder = match beat.await {
            Ok(Ok(holder)) => holder,
            Ok(Err(error)) => {
                tracing::warn!(%error, lease = identity.lease, "the Lease cannot be read or written");
                None
            }
            Err(_) => None,
        };
        settle_role(&shared, &election, holder);
        tokio::time::sleep(BEAT).await;
    }
}

/// Looks at the Lease and writes it if it is this replica's turn; who holds it.
async fn beat(
    leases: &Api<Lease>,
    election: &mut Election,
    identity: &Identity,
    shared: &Shared,
) -> Result<Option<String>, kube::Error> {
    let found = leases.get_opt(&identity.lease).await?;
    let record = found.as_ref().map(|lease| {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        Record { holder: holder.filter(|holder| !holder.is_empty()), version }
    });
    let holder = record.as_ref().and_then(|record| record.holder.clone());
    let began = shared.now();
    match election.step(record, began) {
        Step::Wait => {
            election.lost();
            Ok(holder)
        }
        Step::Take => {
            let taken = write(leases, identity, found, Some(identity.me.clone())).await;
            match taken {
                Ok(()) => election.wrote(began),
                // Somebody was faster, or the answer was lost; the next look says which.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error),
            }
            Ok(Some(identity.me.clone()))
        }
    }
}

async fn write(
    leases: &Api<Lease>,
    identity: &Identity,
    found: Option<Lease>,
    holder: Option<String>,
) -> Result<(), kube::Error> {
    let now = Some(MicroTime(Timestamp::now()));
    let before = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let same = before.holder_identity == holder;
    let seconds = i32::try_from(identity.duration.as_secs()).unwrap_or(i32::MAX);
    let spec = LeaseSpec {
        acquire_time: if same { before.acquire_time } else { now.clone() },
        holder_identity: Some(holder.unwrap_or_default()),
        lease_duration_seconds: Some(seconds),
        lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!same)),
        renew_time: now,
        ..LeaseSpec::default()
    };
    let params = PostParams::default();
    match found {
        Some(lease) => {
            // With the version that was read: a write in between is a conflict.
            let lease = Lease { spec: Some(spec), ..lease };
            leases.replace(&identity.lease, &params, &lease).await?;
        }
        None => {
            let name = Some(identity.lease.clone());
            let metadata = ObjectMeta { name, ..ObjectMeta::default() };
            leases.create(&params, &Lease { metadata, spec: Some(spec) }).await?;
        }
    }
    Ok(())
}

fn settle_role(shared: &Arc<Shared>, election: &Election, holder: Option<String>) {
    let until = election.leads_until();
    shared.lead_until(until);
    let leads = shared.now() < until;
    let mut list = false;
    shared.role.send_if_modified(|role| {
        let next = match (&*role, leads) {
            (Role::Ending, _) | (Role::Leading | Role::Settling, true) => return false,
            (Role::Standby(_), true) => {
                list = true;
                Role::Settling
            }
            (Role::Standby(known), false) if *known == holder => return false,
            (Role::Leading | Role::Settling | Role::Standby(_), false) => Role::Standby(holder),
        };
        tracing::info!(?next, "the election");
        *role = next;
        true
    });
    if list {
        tokio::spawn(lead_when_settled(Arc::clone(shared)));
    }
}

/// Binds begin when all pods were read once more: whatever the leader before this one bound is
/// known then, and which groups it bound in part.
async fn lead_when_settled(shared: Arc<Shared>) {
    let wanted = shared.want_list();
    let mut lists = shared.lists.subscribe();
    if lists.wait_for(|lists| lists.come >= wanted).await.is_err() {
        return;
    }
    let now = shared.now();
    shared.index().resume_groups(now);
    shared.role.send_if_modified(|role| {
        let settled = *role == Role::Settling && lists.borrow().come >= wanted;
        if settled {
            *role = Role::Leading;
            tracing::info!("leads");
        }
        settled
    });
}

/// Gives the Lease back when this replica holds it and no bind of it is on its way, nor may be: whoever
/// leads next does not know of places that a lost request may still take.
pub(crate) async fn resign(shared: &Shared, client: Client, identity: &Identity) {
    let before = shared.role.send_replace(Role::Ending);
    let mut binds = shared.binds.subscribe();
    let done = binds.wait_for(|binds| *binds == 0);
    let all = tokio::time::timeout(identity.duration / 2, done).await.is_ok();
    match before {
        Role::Leading | Role::Settling => {}
        Role::Standby(_) | Role::Ending => return,
    }
    if !all || shared.index().in_doubt(shared.now()) {
        tracing::warn!("binds are still on their way, or may be, so the Lease is left to run out");
        return;
    }
    let leases: Api<Lease> = Api::namespaced(client, &identity.namespace);
    let given = async {
        let found = leases.get(&identity.lease).await?;
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        if holder == Some(&identity.me) {
            write(&leases, identity, Some(found), None).await?;
        }
        Ok::<_, kube::Error>(())
    };
    match tokio::time::timeout(PATIENCE, given).await {
        Ok(Ok(())) => tracing::info!("the Lease is given back"),
        Ok(Err(error)) => tracing::warn!(%error, "the Lease is left to run out"),
        Err(_) => tracing::warn!("the Lease is left to run out"),
    }
}
