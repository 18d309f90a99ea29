//! gpu-zone's scheduler extender: which node and which GPUs a pod gets, under its quotas.
//!
//! ```text
//! kube-scheduler ──filter, prioritize, bind, preempt──▶ http ──▶ index ◀── feeds ── API server
//!                                                        │          ▲
//!                                                        └─ binder ─┴─▶ one Binding a pod
//! API server ──AdmissionReview──▶ webhook ─▶ admission
//!                                            keeper: leader, waker, quotas' status, lost answers
//! ```
//!
//! Architecture invariant: every decision is made by [`index`], which is plain and synchronous:
//! no clock, no lock, no network. All it knows comes from the API server, and an extender that
//! starts anew knows all of it again, but for what pods that are gone had asked for.
#![forbid(unsafe_code)]

pub mod admission;
pub mod ask;
mod binder;
pub mod config;
pub mod election;
mod feeds;
mod fill;
mod follow;
pub mod host;
mod http;
pub mod index;
mod keeper;
mod leader;
mod metrics;
mod offers;
pub mod pod_group;
mod reclaim;
mod run;
mod shared;
mod tls;
pub mod view;
mod webhook;
pub mod wire;

pub use keeper::{MANAGER, WAKE_ANNOTATION};
pub use run::{RunError, run};
pub use tls::TlsError;
