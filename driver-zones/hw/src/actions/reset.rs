use gpuzone_core::PciAddress;
use gpuzone_core::devices::{Reset, ResetMethod, ResetPolicy, ResetScope};

use super::{Action, ActionError, Change, Devices, Write, Writes};

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
            return Err(ActionError::NotOffered { address, file: "reset_method", why: "" });
        };
        self.check_free(&function)?;
        let from = function.reset_methods;
        // The kernel tries them in its own order unless it is told.
        let ordered = from.first() != Some(&method);
        if ordered {
            let changes = vec![Change::ResetOrder { address, from, to: vec![method] }];
            let what = format!("reset {address} by {method} only");
            self.run(Action { what, passing: true, changes, ..Action::default() })?;
        }
        let path = self.places.sysfs.function(address).join("reset");
        let done = self.put(&Write { path, text: "1".to_owned() });
        if ordered {
            let order = |change: &Change| matches!(change, Change::ResetOrder { address: of, .. } if *of == address);
            if let Some(kept) = self.kept_with(order).cloned() {
                self.take_back(&kept)?;
            }
        }
        done.map(|()| method)
    }
}
