//! libnvidia-ml.so.1 of the simulated GPU: what NVML tells of the state that all processes of
//! the simulated node share.
//!
//! It only looks, but for MIG instances, which it makes and ends: it registers no process and holds no memory. What it does not export, a
//! client finds missing; what it exports and the simulated GPU has not got (temperature, power)
//! answers `NVML_ERROR_NOT_SUPPORTED`.

mod cut;
mod device;
mod events;
mod fields;
mod links;
mod mig;
mod processes;
mod state;
mod system;
