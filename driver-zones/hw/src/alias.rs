//! Which driver for VFIO a function gets: the kernel's `modules.alias` lists them, and vendors have
//! some of their own.

use std::path::{Path, PathBuf};

use crate::pci::parse::is_name;

/// What the names of drivers for VFIO begin with, where those of others begin with `pci:`.
const VFIO: &str = "vfio_pci:";

/// The driver that takes any function.
pub const GENERIC: &str = "vfio-pci";

/// A line of `modules.alias` for VFIO.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    pattern: String,
    module: String,
}

/// The lines of `modules.alias` that are for VFIO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleAliases(Vec<Alias>);

/// `modules.alias` cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}; it is the running kernel's, of its package", .path.display())]
pub struct AliasError {
    path: PathBuf,
    source: std::io::Error,
}

impl ModuleAliases {
    /// Those of a file. Where there is none, each function gets `vfio-pci`.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn load(path: &Path) -> Result<Self, AliasError> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(AliasError { path: path.to_owned(), source }),
        }
    }

    /// From the file's text. Lines that are not for VFIO, or are none, are passed over.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (Some("alias"), Some(pattern), Some(module), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return None;
            };
            let ours = pattern.starts_with(VFIO) && !pattern.contains('[') && is_name(module);
            ours.then(|| Alias { pattern: pattern.to_owned(), module: module.to_owned() })
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// The module for a function with this `modalias`: of those that match, the one with the
    /// fewest wildcards; of equals the first.
    pub fn module_for(&self, modalias: &str) -> Option<&str> {
        let wanted = format!("{VFIO}{}", modalias.trim().strip_prefix("pci:")?);
        let matching = self.0.iter().filter(|alias| matches(&alias.pattern, &wanted));
        matching.min_by_key(|alias| wildcards(&alias.pattern)).map(|alias| alias.module.as_str())
    }
}

fn wildcards(pattern: &str) -> usize {
    pattern.bytes().filter(|byte| matches!(byte, b'*' | b'?')).count()
}

/// Whether `text` is as `pattern` says: `*` is anything, `?` any one byte. It takes no longer than
/// the product of both lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || text.get(seen) == Some(byte) => {
                at += 1;
                seen += 1;
            }
            Some(_) | None => match star {
                Some((position, taken)) => {
                    star = Some((position, taken + 1));
                    (at, seen) = (position + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALIASES: &str = "\
# Aliases extracted from modules themselves.
alias pci:v000010DEd*sv*sd*bc03sc02i00* nouveau
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v000010DEd[0-9]sv*sd*bc*sc*i* odd
alias vfio_pci:v*d*sv*sd*bc03sc*i* ../evil
alias vfio_pci:v*
";
    const GRACE: &str = "pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00";

    #[test]
    fn the_match_with_the_fewest_wildcards_wins() {
        let aliases = ModuleAliases::parse(ALIASES);
        assert_eq!(aliases.module_for(GRACE), Some("nvgrace_gpu_vfio_pci"));
        let other = GRACE.replace("2342", "2330");
        assert_eq!(aliases.module_for(&other), Some("vfio_pci"));
        assert_eq!(aliases.module_for("usb:v1"), None);
        assert_eq!(ModuleAliases::default().module_for(GRACE), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("modules.alias");
        assert_eq!(ModuleAliases::load(&file).unwrap(), ModuleAliases::default());
        std::fs::write(&file, ALIASES).unwrap();
        assert_eq!(ModuleAliases::load(&file).unwrap(), aliases);
    }

    /// The same in the words of its definition; slow.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=text.len()).any(|taken| slow(rest, &text[taken..])),
            (Some((b'?', rest)), Some((_, behind))) => slow(rest, behind),
            (Some((byte, rest)), Some((other, behind))) => byte == other && slow(rest, behind),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_its_definition_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn any_text_is_answered(text in "(?s).{0,200}", lines in "(alias vfio_pci:[v*?0-9]{0,20} [a-z./]{1,5}\n){0,4}") {
            crate::fuzz::modules_alias(text.as_bytes());
            crate::fuzz::modules_alias(lines.as_bytes());
        }
    }
}
