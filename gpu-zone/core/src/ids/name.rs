use std::fmt;
use std::str::FromStr;

use super::{InvalidId, text_serde};

/// Who pays and who is kept apart from all others.
///
/// A DNS label (RFC 1123), as a Kubernetes namespace is: 1 to 63 of `a-z`, `0-9` and `-`,
/// with a letter or digit at both ends. So it is safe in a path, a label and a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(String);

impl TenantId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = |rule| Err(InvalidId { kind: "tenant", text: text.to_owned(), rule });
        if text.is_empty() || text.len() > 63 {
            return invalid("a tenant's name has 1 to 63 characters");
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !text.bytes().all(allowed) {
            return invalid("use only a-z, 0-9 and '-'");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return invalid("it begins and ends with a letter or a digit");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(TenantId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in ["", "-a", "a-", "a/b", "..", "Acme", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert!(name.parse::<TenantId>().is_err(), "{name:?}");
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
