use std::fmt;
use std::str::FromStr;

use super::{InvalidId, text_serde};

/// Where a function sits on the PCI bus; shown as sysfs names it, `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The address of these parts; `device` is at most 31, `function` at most 7.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            None
        } else {
            Some(Self { domain, bus, device, function })
        }
    }

    /// PCI domain (segment).
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }
}

/// Exactly hexadecimal digits, `min` to `max` of them: `from_str_radix` alone would take a sign.
fn hex(text: &str, min: usize, max: usize) -> Option<u32> {
    let digits = (min..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if digits { u32::from_str_radix(text, 16).ok() } else { None }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.split_once('.')?;
    let mut parts = rest.split(':');
    let (domain, bus, device) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let byte = |text, digits| hex(text, digits, digits).and_then(|value| u8::try_from(value).ok());
    PciAddress::new(hex(domain, 4, 8)?, byte(bus, 2)?, byte(device, 2)?, byte(function, 1)?)
}

impl FromStr for PciAddress {
    type Err = InvalidId;

    /// Reads sysfs' form (`0000:01:00.0`) and NVML's, whose domain has eight digits.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        parse(text).ok_or_else(|| InvalidId {
            kind: "PCI address",
            text: text.to_owned(),
            rule: "write it as domain:bus:device.function in hexadecimal, like 0000:01:00.0",
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        f.pad(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
    }
}

text_serde!(PciAddress);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_back(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn any_text_is_answered(text in "[0-9a-f:.+-]{0,20}") {
            let _ = text.parse::<PciAddress>();
        }
    }

    #[test]
    fn nvml_form_is_the_same_address() {
        assert_eq!("00000000:3B:00.0".parse::<PciAddress>(), "0000:3b:00.0".parse());
        for wrong in ["01:00.0", "0000:01:20.0", "0000:01:00.8", "0000:+1:00.0", "0000:01:00.0.0"] {
            assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
        }
    }
}
