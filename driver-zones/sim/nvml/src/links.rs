//! NVLink: link N of a GPU leads to its Nth peer, by index. NVML has 18 links, so of more
//! peers than that only the first are shown.

use nvml_wrapper_sys::bindings::*;

use crate::device::pci_info;
use crate::state::{Device, Handle};
use gpuzone_nvml_abi::Answer;
use gpuzone_nvml_abi::{INVALID, NOT_SUPPORTED, Out, entry_points};

/// The peer that `link` leads to; `None` for a link that is not connected.
fn peer(device: &Device, link: u32) -> Answer<Option<usize>> {
    let peers = &device.gpu().config().nvlink_peers;
    if link >= NVML_NVLINK_MAX_LINKS {
        return Err(INVALID);
    }
    if peers.is_empty() {
        return Err(NOT_SUPPORTED);
    }
    let link = usize::try_from(link).map_err(|_| INVALID)?;
    Ok(peers.iter().nth(link).copied())
}

entry_points! {
    fn nvmlDeviceGetNvLinkState(device: Handle, link: u32, active: Out<nvmlEnableState_t>) {
        let connected = peer(&Device::of(device)?, link)?.is_some();
        active.put(if connected {
            nvmlEnableState_enum_NVML_FEATURE_ENABLED
        } else {
            nvmlEnableState_enum_NVML_FEATURE_DISABLED
        })
    }

    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Handle, link: u32, info: Out<nvmlPciInfo_t>) {
        let device = Device::of(device)?;
        let peer = peer(&device, link)?.and_then(|peer| device.node().gpus().get(peer));
        info.put(pci_info(peer.ok_or(INVALID)?.config().pci))
    }
}
