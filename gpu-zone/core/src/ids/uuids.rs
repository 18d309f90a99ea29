use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::{InvalidId, text_serde};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The identifier with this UUID; a version 7 UUID keeps listings in order of age.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // `Uuid::parse_str` takes more forms than the one that is shown; one name, one id.
                let parsed = text
                    .strip_prefix($prefix)
                    .and_then(|simple| Uuid::parse_str(simple).ok())
                    .map(Self)
                    .filter(|id| id.to_string() == text);
                parsed.ok_or_else(|| InvalidId {
                    kind: $kind,
                    text: text.to_owned(),
                    rule: concat!("write '", $prefix, "' and 32 hexadecimal digits, as the listing shows it"),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!($prefix, "{}"), self.0.simple()))
            }
        }

        text_serde!($name);
    };
}

uuid_id!(
    /// One lease; shown as `lease-` and 32 hexadecimal digits.
    LeaseId, "lease", "lease-"
);
uuid_id!(
    /// One zone, driver zone or workload zone; shown as `zone-` and 32 hexadecimal digits.
    ZoneId, "zone", "zone-"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_back(bits: u128) {
            let lease = LeaseId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(lease.to_string().parse(), Ok(lease));
        }
    }

    #[test]
    fn one_name_for_one_id() {
        let name = LeaseId::from_uuid(Uuid::from_u128(0xA)).to_string();
        assert!(name.to_uppercase().parse::<LeaseId>().is_err());
        assert!("lease-{0000000000000000000000000000000a}".parse::<LeaseId>().is_err());
        assert!(name.replace("lease", "zone").parse::<LeaseId>().is_err());
    }
}
