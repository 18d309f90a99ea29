//! Finding a GPU of the lease.

use std::ffi::c_char;

use gpuzone_core::{GpuUuid, PciAddress};
use gpuzone_nvml_abi::bindings::nvmlPciInfo_t;
use gpuzone_nvml_abi::{Answer, INVALID, NOT_FOUND, NOT_SUPPORTED, Out, Text, entry_points, field};
use gpuzone_wire::view::{GpuView, View};

use crate::state::{Device, Handle, handle, view};

fn count() -> Answer<u32> {
    u32::try_from(view()?.gpus.len()).map_err(|_| INVALID)
}

fn by_index(index: u32) -> Answer<Handle> {
    let index = usize::try_from(index).map_err(|_| INVALID)?;
    if index < view()?.gpus.len() { Ok(handle(index)) } else { Err(INVALID) }
}

fn position(view: &View, is: impl Fn(&GpuView) -> bool) -> Answer<Handle> {
    view.gpus.iter().position(is).map(handle).ok_or(NOT_FOUND)
}

fn by_pci(address: &Text) -> Answer<Handle> {
    let view = view()?;
    let wanted: PciAddress = address.read()?.parse().map_err(|_| INVALID)?;
    position(&view, |gpu| {
        gpu.pci.is_some_and(|(domain, bus, device)| {
            let parts = (wanted.domain(), wanted.bus().into(), wanted.device().into());
            parts == (domain, bus, device)
        })
    })
}

/// As CUDA tells the address; what CUDA does not tell (the vendor's numbers) is 0.
fn pci_info(gpu: &GpuView) -> Answer<nvmlPciInfo_t> {
    let (domain, bus, device) = gpu.pci.ok_or(NOT_SUPPORTED)?;
    Ok(nvmlPciInfo_t {
        busIdLegacy: field(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: field(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
    })
}

entry_points! {
    fn nvmlDeviceGetCount(to: Out<u32>) { to.put(count()?) }
    fn nvmlDeviceGetCount_v2(to: Out<u32>) { to.put(count()?) }

    fn nvmlDeviceGetHandleByIndex(index: u32, device: Out<Handle>) {
        device.put(by_index(index)?)
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<Handle>) {
        device.put(by_index(index)?)
    }

    fn nvmlDeviceGetHandleByUUID(uuid: Text, device: Out<Handle>) {
        let view = view()?;
        let wanted: GpuUuid = uuid.read()?.parse().map_err(|_| INVALID)?;
        device.put(position(&view, |gpu| gpu.uuid == *wanted.as_bytes())?)
    }

    fn nvmlDeviceGetHandleByPciBusId(pci: Text, device: Out<Handle>) {
        device.put(by_pci(&pci)?)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(pci: Text, device: Out<Handle>) {
        device.put(by_pci(&pci)?)
    }

    fn nvmlDeviceGetPciInfo_v3(device: Handle, info: Out<nvmlPciInfo_t>) {
        info.put(pci_info(Device::of(device)?.gpu())?)
    }

    fn nvmlDeviceGetIndex(device: Handle, index: Out<u32>) {
        index.put(u32::try_from(Device::of(device)?.index).map_err(|_| INVALID)?)
    }

    fn nvmlDeviceGetUUID(device: Handle, text: Out<c_char>, len: u32) {
        text.put_text(&GpuUuid::from_bytes(Device::of(device)?.gpu().uuid).to_string(), len)
    }

    fn nvmlDeviceOnSameBoard(one: Handle, other: Handle, same: Out<i32>) {
        let (one, other) = (Device::of(one)?, Device::of(other)?);
        // Of two GPUs nobody tells.
        if one.index == other.index { same.put(1) } else { Err(NOT_SUPPORTED) }
    }
}
