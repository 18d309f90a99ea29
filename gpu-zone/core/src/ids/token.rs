use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The token of a virtual function whose physical one is on VFIO too: a UUID that the owner of the
/// physical function has set. It is a secret, so nothing shows it by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct VfToken(Uuid);

/// A text that is no token. It may be a secret all the same, so it is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token of a virtual function is a UUID, and this is none")]
pub struct InvalidToken;

impl VfToken {
    /// The one with this value.
    pub const fn new(token: Uuid) -> Self {
        Self(token)
    }

    /// The token itself, for whoever opens the function and whoever hands it to that one. Its text is in the form
    /// in which the kernel takes it.
    pub const fn reveal(&self) -> Uuid {
        self.0
    }
}

impl FromStr for VfToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        // In the form in which the kernel takes it.
        let written = text.len() == uuid::fmt::Hyphenated::LENGTH;
        let parsed = Uuid::parse_str(text).ok().filter(|_| written);
        parsed.map(Self).ok_or(InvalidToken)
    }
}

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_uuid_as_the_kernel_takes_it_and_is_not_shown() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let token: VfToken = text.parse().unwrap();
        assert_eq!(token.reveal().to_string(), text);
        assert_eq!(format!("{token:?} {:?}", Some(&token)), "VfToken(…) Some(VfToken(…))");
        let braced = format!("{{{text}}}");
        for wrong in ["", "secret", &text[1..], &text.replace('-', ""), &braced, "urn:uuid:"] {
            let refused = wrong.parse::<VfToken>().unwrap_err();
            let said = format!("{refused} {refused:?}");
            assert!(wrong.is_empty() || !said.contains(wrong), "{said}");
        }
    }
}
