use std::fmt;
use std::str::FromStr;

use super::{InvalidId, text_serde};

/// Who pays and who is kept apart from all others.
///
/// A DNS label (RFC 1123), as a Kubernetes namespace is: 1 to 63 of `a-z`, `0-9` and `-`,
/// with a letter or digit at both ends. So it is safe in a path, a label and a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(String);

/// What a workload zone that several programs share is called; a DNS label, as a tenant's name is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneName(String);

macro_rules! label {
    ($type:ident, $kind:literal, $length:literal) => {
        impl $type {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = |rule| InvalidId { kind: $kind, text: text.to_owned(), rule };
                check(text, $length).map_err(invalid)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        text_serde!($type);
    };
}

label!(TenantId, "tenant", "a tenant's name has 1 to 63 characters");
label!(ZoneName, "zone", "a zone's name has 1 to 63 characters");

fn check(text: &str, length: &'static str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 63 {
        return Err(length);
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !text.bytes().all(allowed) {
        return Err("use only a-z, 0-9 and '-'");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it begins and ends with a letter or a digit");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in ["", "-a", "a-", "a/b", "..", "Acme", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert!(name.parse::<TenantId>().is_err(), "{name:?}");
            assert!(name.parse::<ZoneName>().is_err(), "{name:?}");
        }
        let error = "x/".repeat(150).parse::<TenantId>().unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }

    proptest! {
        #[test]
        fn a_valid_name_is_safe_in_a_path(name in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?") {
            let tenant: TenantId = name.parse().unwrap();
            prop_assert_eq!(tenant.to_string(), name);
        }
    }
}
