use std::collections::BTreeSet;

use gpuzone_core::PciAddress;

use super::{FunctionKind, PciFunction, SysfsError};
use crate::SysfsRoot;

impl SysfsRoot {
    /// The GPUs, the switches between them, and what goes with either: companions, virtual
    /// functions, and what shares their IOMMU groups. Bridges are left out.
    ///
    /// # Errors
    /// As for [`Self::functions`].
    pub fn cards(&self) -> Result<Vec<PciFunction>, SysfsError> {
        let mut functions = self.functions()?;
        let with = |function: &PciFunction| {
            let members = function.group.iter().flat_map(|group| group.members.iter());
            let virtuals = function.sriov.iter().flat_map(|sriov| sriov.functions.iter());
            let all = members.chain(virtuals).chain(&function.companions);
            all.copied().chain([function.address]).collect::<Vec<PciAddress>>()
        };
        let is_card = |function: &&PciFunction| match function.kind {
            FunctionKind::Gpu | FunctionKind::NvSwitch => true,
            FunctionKind::Audio | FunctionKind::Bridge | FunctionKind::Other => false,
        };
        let shown: BTreeSet<PciAddress> = functions.iter().filter(is_card).flat_map(with).collect();
        functions.retain(|function| {
            shown.contains(&function.address) && function.kind != FunctionKind::Bridge
        });
        Ok(functions)
    }
}
