//! Discovery and actions on a folder that stands for sysfs, with a kernel that does what is
//! written to it.
#[cfg(test)]
mod actions;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod discovery;
#[cfg(test)]
mod instances;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod random;
