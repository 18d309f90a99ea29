use gpuzone_core::PciAddress;
use gpuzone_core::devices::{Reset, ResetMethod, ResetPolicy, ResetScope};

use super::{Action, ActionError, Change, Devices, Write, Writes};

/// Of a policy with nothing else in it.
const SLOT: &str = "its slot is reset by whoever has it open over VFIO";

impl<W: Writes> Devices<W> {
    /// Resets a function in the best way that the policy knows and the kernel has for it, and says
    /// which that was. A reset of its slot is VFIO's ([`crate::vfio::VfioDevice::reset_slot`]).
    ///
    /// # Errors
    /// When no way counts, somebody uses it, or the kernel refuses.
    pub fn reset(
        &mut self,
        address: PciAddress,
        policy: &ResetPolicy,
    ) -> Result<ResetMethod, ActionError> {
        let function = self.usable(address)?;
        let none = |source| ActionError::NoReset { address, source };
        let chosen = policy.choose(&function.reset_methods, &ResetScope::None).map_err(none)?;
        let Reset::Function(method) = chosen else {
            return Err(ActionError::NotOffered { address, file: "reset_method", why: SLOT });
        };
        self.check_free(&function)?;
        self.with_reset_order(address, method, |devices| {
            let path = devices.places.sysfs.function(address).join("reset");
            devices.put(&Write { path, text: "1".to_owned() })
        })?;
        Ok(method)
    }

    /// Does something while the kernel resets a function in this way only, and puts its order
    /// back. Whoever dies in between leaves that to the next one.
    ///
    /// # Errors
    /// When the order cannot be set, or what is done fails; or when it cannot be put back.
    pub fn with_reset_order<T>(
        &mut self,
        address: PciAddress,
        method: ResetMethod,
        act: impl FnOnce(&mut Self) -> Result<T, ActionError>,
    ) -> Result<T, ActionError> {
        let from = self.usable(address)?.reset_methods;
        // Of several ways the kernel takes the next one where one does not serve.
        if from == [method] {
            return act(self);
        }
        let changes = vec![Change::ResetOrder { address, from, to: vec![method] }];
        let what = format!("reset {address} by {method} only");
        self.run(Action { what, passing: true, changes, ..Action::default() })?;
        let done = act(self);
        let order = |change: &Change| matches!(change, Change::ResetOrder { address: of, .. } if *of == address);
        let Some(kept) = self.kept_with(order).cloned() else { return done };
        match self.take_back(&kept) {
            Ok(()) => done,
            // A second time; if that fails, too, the next process does it.
            Err(_) => match self.take_back(&kept) {
                Ok(()) => done,
                Err(error) => Err(ActionError::Order { address, source: Box::new(error) }),
            },
        }
    }
}
