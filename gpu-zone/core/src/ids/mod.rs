//! Identifiers, each checked when it is made.

mod gpu;
mod name;
mod pci;
mod token;
mod uuids;

pub use gpu::GpuUuid;
pub use name::{TenantId, ZoneName};
pub use pci::PciAddress;
pub use token::{InvalidToken, VfToken};
pub use uuids::{LeaseId, ZoneId};

/// A text that is not the identifier it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{}' is not valid: {rule}", shorten(.text))]
pub struct InvalidId {
    pub(crate) kind: &'static str,
    pub(crate) text: String,
    pub(crate) rule: &'static str,
}

/// Identifiers come from strangers: an error never repeats more than 80 characters of one.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Text form in serde for a type with `FromStr` and `Display`.
macro_rules! text_serde {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use text_serde;
