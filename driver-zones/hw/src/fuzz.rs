//! What the fuzzer and the property tests call: each takes any bytes, and may not panic, hang or
//! answer what contradicts itself.
#![doc(hidden)]

use crate::alias::ModuleAliases;
use crate::pci::parse;

/// The texts of sysfs.
pub fn sysfs_text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for bar in parse::bars(&text) {
        assert!(bar.index < 6 && bar.size > 0, "{bar:?}");
    }
    for kind in parse::vgpu_types(&text) {
        assert!(kind.name == kind.name.trim(), "{kind:?}");
    }
    let _ = (parse::hex(&text), parse::count(&text), parse::reset_methods(&text));
    if parse::is_name(&text) {
        assert!(!text.contains('/') && *text != *"..", "{text}");
    }
}

/// `modules.alias`, and a device's alias: the text's last line.
pub fn modules_alias(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let aliases = ModuleAliases::parse(&text);
    let device = text.lines().last().unwrap_or_default();
    if let Some(module) = aliases.module_for(device) {
        assert!(parse::is_name(module), "{module}");
    }
    let _ = aliases.module_for("pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00");
}

/// A journal of devices.
pub fn journal(bytes: &[u8]) {
    if let Some(length) = crate::actions::journal_length(bytes) {
        // What is left out is one line at most, and the rest alone says the same.
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        let (kept, torn) = bytes.split_at(whole);
        assert!(!torn.strip_suffix(b"\n").unwrap_or(torn).contains(&b'\n'));
        assert_eq!(crate::actions::journal_length(kept), Some(length));
    }
}
