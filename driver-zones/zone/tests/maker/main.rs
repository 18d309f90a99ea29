//! A driver zone without its broker's and its workers' programs: what a broker that was taken over can
//! do, what the maker of zones answers it, and what a maker could do that was taken over itself.
#[cfg(test)]
mod broker;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
#[cfg(test)]
mod words;
#[cfg(test)]
mod zone;
