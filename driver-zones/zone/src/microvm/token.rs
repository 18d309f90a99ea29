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

impl VfToken {
    /// The token itself, for who opens the function.
    pub(super) fn reveal(&self) -> String {
        self.0.hyphenated().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::super::{Accelerator, Hypervisor, Machine, MicroVms, Passthrough, VmSpec};

    #[test]
    fn a_token_reaches_the_hypervisor_in_a_file_and_on_no_command_line() {
        let token = "00112233-4455-6677-8899-aabbccddeeff";
        let folder = tempfile::tempdir().unwrap();
        let device = |address: &str, token: Option<&str>| Passthrough {
            address: address.to_owned(),
            vf_token: token.map(|token| token.parse().unwrap()),
        };
        let mut vm = VmSpec {
            program: "/usr/bin/qemu-system-x86_64".into(),
            kernel: "/k/bzImage".into(),
            image: "/i/zone.cpio".into(),
            append: String::new(),
            accelerator: Accelerator::Tcg,
            machine: Machine::Q35 { windows: 0, iommu: false },
            memory: 256 << 20,
            processors: 1,
            devices: vec![device("0000:3b:00.1", Some(token))],
            ports: vec!["input".to_owned()],
        };
        let vms = MicroVms::new(folder.path().to_owned(), Hypervisor::Qemu);
        let launch = vms.launch("z", &vm).unwrap();
        let words: Vec<&str> = launch.arguments.iter().filter_map(|word| word.to_str()).collect();
        assert!(words.iter().all(|word| !word.contains(token)), "{words:?}");
        // Monitor, control port and one more are the descriptors 3 to 5.
        assert_eq!(launch.inherit.len(), 4);
        assert!(words.contains(&"/proc/self/fd/6"), "{words:?}");
        let mut text = String::new();
        let file = launch.inherit.into_iter().next_back().unwrap();
        File::from(file).read_to_string(&mut text).unwrap();
        assert!(text.contains(&format!("vf-token = \"{token}\"")), "{text}");
        vm.devices = vec![device("0000:3b:00.1", None)];
        assert_eq!(vms.launch("z", &vm).unwrap().inherit.len(), 3);
    }
}
