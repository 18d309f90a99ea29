use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::PciAddress;

/// How the kernel can reset a function, as `reset_method` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetMethod {
    /// What the kernel knows of this very device.
    DeviceSpecific,
    /// By the firmware.
    Acpi,
    /// Function level reset.
    Flr,
    /// The same of conventional PCI.
    AfFlr,
    /// Through the sleeping state D3hot.
    Pm,
    /// Of the bus or the slot it is alone on.
    Bus,
    /// Of a CXL bus.
    CxlBus,
}

/// No method has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no way to reset a function that is known here")]
pub struct UnknownResetMethod(String);

impl ResetMethod {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::DeviceSpecific,
        Self::Acpi,
        Self::Flr,
        Self::AfFlr,
        Self::Pm,
        Self::Bus,
        Self::CxlBus,
    ];

    /// Its name in sysfs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeviceSpecific => "device_specific",
            Self::Acpi => "acpi",
            Self::Flr => "flr",
            Self::AfFlr => "af_flr",
            Self::Pm => "pm",
            Self::Bus => "bus",
            Self::CxlBus => "cxl_bus",
        }
    }
}

impl FromStr for ResetMethod {
    type Err = UnknownResetMethod;

    fn from_str(text: &str) -> Result<Self, UnknownResetMethod> {
        let named = Self::ALL.into_iter().find(|method| method.as_str() == text);
        named.ok_or_else(|| UnknownResetMethod(text.chars().take(40).collect()))
    }
}

impl fmt::Display for ResetMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A reset to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reset {
    /// Of the function, in this way.
    Function(ResetMethod),
    /// Of all that is in its slot or on its bus, at once, by VFIO.
    Slot,
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(method) => method.fmt(f),
            Self::Slot => f.pad("slot"),
        }
    }
}

/// What a reset of the slot would reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetScope {
    /// There is no such reset.
    None,
    /// Only what is handed over together.
    Own,
    /// Something else, too: this, for one.
    Beyond(PciAddress),
}

/// Which resets count as one between two tenants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetPolicy {
    /// Best first.
    pub preferred: Vec<Reset>,
}

impl Default for ResetPolicy {
    /// What resets the whole device goes first: no source says that a function level reset clears
    /// a GPU's memory. What is weaker serves where there is nothing else, for the canary decides.
    /// The sleeping state clears nothing of a GPU on power, and is none of them.
    fn default() -> Self {
        use ResetMethod::{Acpi, AfFlr, Bus, CxlBus, DeviceSpecific, Flr};
        let methods = [Bus, CxlBus, DeviceSpecific, Acpi, Flr, AfFlr].map(Reset::Function);
        Self { preferred: std::iter::once(Reset::Slot).chain(methods).collect() }
    }
}

/// No reset serves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoReset {
    /// The device has none of those that count.
    #[error(
        "the device can be reset by {}, and none of that counts as one between tenants", list(.can)
    )]
    NonePreferred {
        /// What it can.
        can: Vec<ResetMethod>,
    },
    /// The only one would hit others.
    #[error(
        "a reset of its slot would hit {other}, which is not handed over with it; hand both over together, or neither"
    )]
    HitsOthers {
        /// One that it would hit.
        other: PciAddress,
    },
}

fn list(methods: &[ResetMethod]) -> String {
    if methods.is_empty() {
        return "nothing".to_owned();
    }
    methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ")
}

impl ResetPolicy {
    /// The best reset that the device has.
    ///
    /// # Errors
    /// When none counts.
    pub fn choose(&self, methods: &[ResetMethod], slot: &ResetScope) -> Result<Reset, NoReset> {
        let has = |reset: &&Reset| match reset {
            Reset::Function(method) => methods.contains(method),
            Reset::Slot => *slot == ResetScope::Own,
        };
        match (self.preferred.iter().find(has), slot) {
            (Some(reset), _) => Ok(*reset),
            (None, ResetScope::Beyond(other)) if self.preferred.contains(&Reset::Slot) => {
                Err(NoReset::HitsOthers { other: *other })
            }
            (None, ResetScope::None | ResetScope::Own | ResetScope::Beyond(_)) => {
                Err(NoReset::NonePreferred { can: methods.to_vec() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_device_goes_before_its_function() {
        let policy = ResetPolicy::default();
        let other: PciAddress = "0000:01:00.1".parse().unwrap();
        let (bus, flr) = (ResetMethod::Bus, ResetMethod::Flr);
        let choose = |methods: &[ResetMethod], slot| policy.choose(methods, &slot);
        assert_eq!(choose(&[flr, bus], ResetScope::Own), Ok(Reset::Slot));
        assert_eq!(choose(&[flr, bus], ResetScope::None), Ok(Reset::Function(bus)));
        assert_eq!(choose(&[flr], ResetScope::Beyond(other)), Ok(Reset::Function(flr)));
        let said = choose(&[ResetMethod::Pm], ResetScope::Beyond(other)).unwrap_err().to_string();
        assert!(said.contains("would hit 0000:01:00.1"), "{said}");
        let said = choose(&[ResetMethod::Pm], ResetScope::None).unwrap_err().to_string();
        assert!(said.contains("by pm"), "{said}");
        assert!(choose(&[], ResetScope::None).unwrap_err().to_string().contains("by nothing"));
    }

    #[test]
    fn names_are_the_kernels() {
        for method in ResetMethod::ALL {
            assert_eq!(method.as_str().parse(), Ok(method));
        }
        assert!("reboot".parse::<ResetMethod>().is_err());
    }
}
