use std::ffi::c_char;

use gpuzone_cuda_abi::{CUdevice, CUuuid, CuResult, DeviceAttribute};

use crate::ffi::{Answer, api, put, text};
use crate::state::{State, with};

/// Writes a text and its zero into room of `length` bytes, cut where it does not fit.
fn put_text(place: *mut c_char, length: i32, text: &str) -> Answer {
    let length = usize::try_from(length).unwrap_or(0);
    if place.is_null() || length == 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let kept = text.len().min(length - 1);
    // SAFETY: the driver API's contract: there is room for `length` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), place, kept);
        place.add(kept).write(0);
    }
    Ok(())
}

fn uuid(place: *mut CUuuid, device: CUdevice) -> Answer {
    with(|state| {
        let device = state.device(device)?;
        let bytes = state.devices.get(device).map(|device| device.uuid);
        put(place, CUuuid { bytes: bytes.ok_or(CuResult::INVALID_DEVICE)? })
    })
}

fn bus_id(state: &State, device: usize) -> Answer<String> {
    let attribute = |attribute| state.attribute(device, attribute);
    let domain = attribute(DeviceAttribute::PCI_DOMAIN_ID)?;
    let bus = attribute(DeviceAttribute::PCI_BUS_ID)?;
    let slot = attribute(DeviceAttribute::PCI_DEVICE_ID)?;
    Ok(format!("{domain:04X}:{bus:02X}:{slot:02X}.0"))
}

/// A PCI address as numbers: a domain may be left out, digits may be few.
fn parse_bus_id(text: &str) -> Option<(u32, u32, u32)> {
    let text = text.split('.').next()?;
    let mut parts = text.rsplit(':').map(|part| u32::from_str_radix(part, 16).ok());
    let (slot, bus) = (parts.next()??, parts.next()??);
    let domain = parts.next().unwrap_or(Some(0))?;
    Some((domain, bus, slot))
}

api! {
    fn cuDeviceGetCount(count: *mut i32) {
        with(|state| put(count, i32::try_from(state.devices.len()).unwrap_or(i32::MAX)))
    }

    fn cuDeviceGet(device: *mut CUdevice, ordinal: i32) {
        with(|state| {
            state.device(ordinal)?;
            put(device, ordinal)
        })
    }

    fn cuDeviceGetName(name: *mut c_char, length: i32, device: CUdevice) {
        with(|state| {
            let device = state.device(device)?;
            let device = state.devices.get(device).ok_or(CuResult::INVALID_DEVICE)?;
            put_text(name, length, &device.name)
        })
    }

    fn cuDeviceGetUuid(place: *mut CUuuid, device: CUdevice) {
        uuid(place, device)
    }

    fn cuDeviceGetUuid_v2(place: *mut CUuuid, device: CUdevice) {
        uuid(place, device)
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) {
        with(|state| {
            let device = state.device(device)?;
            let device = state.devices.get(device).ok_or(CuResult::INVALID_DEVICE)?;
            put(bytes, usize::try_from(device.memory).unwrap_or(usize::MAX))
        })
    }

    fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: CUdevice) {
        with(|state| {
            let device = state.device(device)?;
            put(value, state.attribute(device, DeviceAttribute(attribute))?)
        })
    }

    fn cuDeviceComputeCapability(major: *mut i32, minor: *mut i32, device: CUdevice) {
        with(|state| {
            let device = state.device(device)?;
            put(major, state.attribute(device, DeviceAttribute::COMPUTE_CAPABILITY_MAJOR)?)?;
            put(minor, state.attribute(device, DeviceAttribute::COMPUTE_CAPABILITY_MINOR)?)
        })
    }

    fn cuDeviceGetPCIBusId(place: *mut c_char, length: i32, device: CUdevice) {
        with(|state| {
            let device = state.device(device)?;
            put_text(place, length, &bus_id(state, device)?)
        })
    }

    fn cuDeviceGetByPCIBusId(device: *mut CUdevice, address: *const c_char) {
        let wanted = parse_bus_id(text(address)?).ok_or(CuResult::INVALID_VALUE)?;
        with(|state| {
            let is_wanted = |index: &usize| {
                bus_id(state, *index).ok().and_then(|id| parse_bus_id(&id)) == Some(wanted)
            };
            let found = (0..state.devices.len()).find(is_wanted);
            let found = found.and_then(|index| i32::try_from(index).ok());
            put(device, found.ok_or(CuResult::INVALID_DEVICE)?)
        })
    }

    fn cuDeviceGetP2PAttribute(
        value: *mut i32, attribute: i32, source: CUdevice, target: CUdevice,
    ) {
        if !(1..=5).contains(&attribute) {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            if state.device(source)? == state.device(target)? {
                return Err(CuResult::INVALID_DEVICE);
            }
            // GPUs of a lease do not reach each other.
            put(value, 0)
        })
    }

    fn cuDeviceGetExecAffinitySupport(supported: *mut i32, _kind: u32, device: CUdevice) {
        with(|state| {
            state.device(device)?;
            put(supported, 0)
        })
    }

    fn cuDeviceGetProperties(place: *mut [i32; 14], device: CUdevice) {
        use DeviceAttribute as A;
        with(|state| {
            let device = state.device(device)?;
            let wanted = [
                A::MAX_THREADS_PER_BLOCK, A::MAX_BLOCK_DIM_X, A::MAX_BLOCK_DIM_Y,
                A::MAX_BLOCK_DIM_Z, A::MAX_GRID_DIM_X, A::MAX_GRID_DIM_Y, A::MAX_GRID_DIM_Z,
                A::MAX_SHARED_MEMORY_PER_BLOCK, A::TOTAL_CONSTANT_MEMORY, A::WARP_SIZE,
                A::MAX_PITCH, A::MAX_REGISTERS_PER_BLOCK, A::CLOCK_RATE, A::TEXTURE_ALIGNMENT,
            ];
            let mut properties = [0; 14];
            for (place, attribute) in properties.iter_mut().zip(wanted) {
                *place = state.attribute(device, attribute)?;
            }
            put(place, properties)
        })
    }

    fn cuDeviceCanAccessPeer(can: *mut i32, device: CUdevice, peer: CUdevice) {
        with(|state| {
            state.device(device)?;
            state.device(peer)?;
            put(can, 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pci_addresses() {
        assert_eq!(parse_bus_id("0000:3B:00.0"), Some((0, 0x3b, 0)));
        assert_eq!(parse_bus_id("3b:1"), Some((0, 0x3b, 1)));
        assert_eq!(parse_bus_id("10000:3b:1.0"), Some((0x10000, 0x3b, 1)));
        assert_eq!(parse_bus_id("nonsense"), None);
    }

    #[test]
    fn a_text_is_cut_to_its_room() {
        let mut room = [1 as c_char; 4];
        assert_eq!(put_text(room.as_mut_ptr(), 4, "abcdef"), Ok(()));
        assert_eq!(room.map(|c| c.to_ne_bytes()[0]), *b"abc\0");
        assert_eq!(put_text(room.as_mut_ptr(), 0, "a"), Err(CuResult::INVALID_VALUE));
        assert_eq!(put_text(room.as_mut_ptr(), -1, "a"), Err(CuResult::INVALID_VALUE));
    }
}
