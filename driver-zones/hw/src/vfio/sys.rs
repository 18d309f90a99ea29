//! The kernel's interface to VFIO and iommufd: each call with the structure that belongs to it.
#![allow(unsafe_code, reason = "the kernel is spoken to by ioctl, and devices by mapped memory")]

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use gpuzone_core::VfToken;
use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP, iommu_ioas_alloc,
    iommu_ioas_map, iommu_ioas_unmap, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use rustix::mm::{MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_BIND_FLAG_TOKEN, VFIO_DEVICE_FEATURE_PCI_VF_TOKEN,
    VFIO_DEVICE_FEATURE_SET, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_TYPE,
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_region_info,
};

/// The calls, by the numbers that the kernel's header counts from its base.
#[derive(Clone, Copy)]
enum Call {
    GetApiVersion = 0,
    CheckExtension = 1,
    SetIommu = 2,
    GroupGetStatus = 3,
    GroupSetContainer = 4,
    GroupGetDeviceFd = 6,
    DeviceGetInfo = 7,
    DeviceGetRegionInfo = 8,
    DeviceSetIrqs = 10,
    DeviceReset = 11,
    DeviceGetPciHotResetInfo = 12,
    /// Of a container: the same number as the next one of a device.
    IommuMapDma = 13,
    IommuUnmapDma = 14,
    DeviceFeature = 17,
    DeviceBindIommufd = 18,
    DeviceAttachIommufdPt = 19,
}

/// Of a device: the number that is `IommuMapDma`'s of a container.
const DEVICE_PCI_HOT_RESET: Call = Call::IommuMapDma;

/// `_IO(type, number)` of the kernel's headers: no direction and no size in it.
fn request(kind: u8, number: u32) -> libc::c_ulong {
    libc::c_ulong::from(kind) << 8 | libc::c_ulong::from(number)
}

fn result(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// A call whose argument is a number.
fn with_number(fd: BorrowedFd<'_>, call: Call, number: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: the calls that come here take a number, or nothing, and write to no memory of ours.
    result(unsafe {
        libc::ioctl(fd.as_raw_fd(), request(VFIO_TYPE, VFIO_BASE + call as u32), number)
    })
}

/// A call whose argument is a structure that says its own length.
///
/// # Safety
/// `argument` must be what the call takes: the kernel reads and writes as much of it as its first
/// field says, and follows the addresses in it.
unsafe fn with_structure<T>(fd: BorrowedFd<'_>, call: Call, argument: &mut T) -> io::Result<()> {
    let number = request(VFIO_TYPE, VFIO_BASE + call as u32);
    // SAFETY: as promised by the caller; the reference is valid and nobody else's.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(argument)) }).map(drop)
}

/// How long a structure is, as it says itself.
fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

pub(super) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    with_number(container, Call::GetApiVersion, 0)
}

pub(super) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> io::Result<bool> {
    with_number(container, Call::CheckExtension, extension.into()).map(|has| has > 0)
}

pub(super) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    with_number(container, Call::SetIommu, kind.into()).map(drop)
}

pub(super) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
    // SAFETY: GROUP_GET_STATUS takes this structure, and its length is in it.
    unsafe { with_structure(group, Call::GroupGetStatus, &mut status)? };
    Ok(status.flags)
}

pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut container: libc::c_int = container.as_raw_fd();
    // SAFETY: GROUP_SET_CONTAINER reads one number, that of an open file.
    unsafe { with_structure(group, Call::GroupSetContainer, &mut container) }
}

pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let number = request(VFIO_TYPE, VFIO_BASE + Call::GroupGetDeviceFd as u32);
    // SAFETY: GROUP_GET_DEVICE_FD reads a text that ends with a zero, which a CStr does.
    let fd = result(unsafe { libc::ioctl(group.as_raw_fd(), number, name.as_ptr()) })?;
    // SAFETY: the kernel just opened it for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn device_flags(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = vfio_device_info { argsz: size::<vfio_device_info>(), ..Default::default() };
    // SAFETY: DEVICE_GET_INFO takes this structure, and its length is in it.
    unsafe { with_structure(device, Call::DeviceGetInfo, &mut info)? };
    Ok(info.flags)
}

/// Where in the device's file a region is, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) size: u64,
}

pub(super) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<Region> {
    let argsz = size::<vfio_region_info>();
    let mut info = vfio_region_info { argsz, index, ..Default::default() };
    // SAFETY: DEVICE_GET_REGION_INFO takes this structure, and its length is in it.
    unsafe { with_structure(device, Call::DeviceGetRegionInfo, &mut info)? };
    Ok(Region { offset: info.offset, size: info.size })
}

pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    with_number(device, Call::DeviceReset, 0).map(drop)
}

/// `vfio_device_feature` with the 16 bytes of a token behind it.
#[repr(C)]
struct Token {
    argsz: u32,
    flags: u32,
    token: [u8; 16],
}

pub(super) fn set_token(device: BorrowedFd<'_>, token: &VfToken) -> io::Result<()> {
    let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
    let mut feature = Token { argsz: size::<Token>(), flags, token: token.reveal().into_bytes() };
    // SAFETY: DEVICE_FEATURE takes this structure; SET only reads it.
    unsafe { with_structure(device, Call::DeviceFeature, &mut feature) }
}

/// `vfio_irq_set` with one eventfd behind it.
#[repr(C)]
struct Interrupt {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    eventfd: i32,
}

pub(super) fn set_interrupt(
    device: BorrowedFd<'_>,
    index: u32,
    eventfd: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut set = Interrupt {
        argsz: size::<Interrupt>(),
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        start: 0,
        count: 1,
        eventfd: eventfd.as_raw_fd(),
    };
    // SAFETY: DEVICE_SET_IRQS reads this structure, whose length and count are in it.
    unsafe { with_structure(device, Call::DeviceSetIrqs, &mut set) }
}

/// More functions than can be in one slot or on one bus.
const MOST_DEPENDENT: usize = 256;

/// `vfio_pci_hot_reset_info` with room for all that there can be.
#[repr(C)]
struct HotResetInfo {
    argsz: u32,
    flags: u32,
    count: u32,
    devices: [[u8; 8]; MOST_DEPENDENT],
}

/// A function that a reset of the slot would hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dependent {
    /// Its group, or its number among an iommufd's.
    pub(super) id: u32,
    pub(super) segment: u16,
    pub(super) bus: u8,
    pub(super) devfn: u8,
}

pub(super) fn hot_reset_info(device: BorrowedFd<'_>) -> io::Result<Vec<Dependent>> {
    let (argsz, devices) = (size::<HotResetInfo>(), [[0; 8]; MOST_DEPENDENT]);
    let mut info = Box::new(HotResetInfo { argsz, flags: 0, count: 0, devices });
    // SAFETY: DEVICE_GET_PCI_HOT_RESET_INFO fills this structure, no further than its length says.
    unsafe { with_structure(device, Call::DeviceGetPciHotResetInfo, &mut *info)? };
    let of = |[a, b, c, d, e, f, bus, devfn]: &[u8; 8]| Dependent {
        id: u32::from_ne_bytes([*a, *b, *c, *d]),
        segment: u16::from_ne_bytes([*e, *f]),
        bus: *bus,
        devfn: *devfn,
    };
    Ok(info.devices.iter().take(info.count as usize).map(of).collect())
}

/// `vfio_pci_hot_reset` with one group behind it.
#[repr(C)]
struct HotReset {
    argsz: u32,
    flags: u32,
    count: u32,
    group: i32,
}

/// With a group, what is in it is shown to be ours; without, the device's own iommufd shows it.
pub(super) fn hot_reset(device: BorrowedFd<'_>, group: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let (count, number) = group.map_or((0, -1), |group| (1, group.as_raw_fd()));
    let mut reset = HotReset { argsz: size::<HotReset>(), flags: 0, count, group: number };
    // SAFETY: DEVICE_PCI_HOT_RESET reads this structure, whose count is in it.
    unsafe { with_structure(device, DEVICE_PCI_HOT_RESET, &mut reset) }
}

/// `vfio_iommu_type1_dma_unmap` without anything behind it.
#[repr(C)]
struct Unmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

/// Lets devices of a container reach `memory` at `iova`. It stays so until it is unmapped, or the
/// container is closed: the kernel holds its pages, so memory that is dropped before is only lost.
pub(super) fn map(container: BorrowedFd<'_>, iova: u64, memory: &DmaMemory) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size::<vfio_iommu_type1_dma_map>(),
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: memory.address(),
        iova,
        size: memory.length as u64,
    };
    // SAFETY: IOMMU_MAP_DMA reads this structure; the address in it is that of a mapping of ours
    // with that length, of which no reference is ever made.
    unsafe { with_structure(container, Call::IommuMapDma, &mut map) }
}

/// Takes it back, and says how many bytes that were.
pub(super) fn unmap(container: BorrowedFd<'_>, iova: u64, length: u64) -> io::Result<u64> {
    let mut unmap = Unmap { argsz: size::<Unmap>(), flags: 0, iova, size: length };
    // SAFETY: IOMMU_UNMAP_DMA takes this structure, and its length is in it.
    unsafe { with_structure(container, Call::IommuUnmapDma, &mut unmap)? };
    Ok(unmap.size)
}

pub(super) fn bind_iommufd(
    device: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
    token: Option<&VfToken>,
) -> io::Result<u32> {
    let bytes = token.map(|token| token.reveal().into_bytes());
    let mut bind = vfio_device_bind_iommufd {
        argsz: size::<vfio_device_bind_iommufd>(),
        // The kernel follows the address of a token only when it is told that there is one.
        flags: if bytes.is_some() { VFIO_DEVICE_BIND_FLAG_TOKEN } else { 0 },
        iommufd: iommufd.as_raw_fd(),
        token_uuid_ptr: bytes.as_ref().map_or(0, |bytes| bytes.as_ptr() as u64),
        ..Default::default()
    };
    // SAFETY: DEVICE_BIND_IOMMUFD takes this structure; the 16 bytes outlive the call.
    unsafe { with_structure(device, Call::DeviceBindIommufd, &mut bind)? };
    Ok(bind.out_devid)
}

pub(super) fn attach(device: BorrowedFd<'_>, table: u32) -> io::Result<()> {
    let argsz = size::<vfio_device_attach_iommufd_pt>();
    let mut attach = vfio_device_attach_iommufd_pt { argsz, pt_id: table, ..Default::default() };
    // SAFETY: DEVICE_ATTACH_IOMMUFD_PT takes this structure, and its length is in it.
    unsafe { with_structure(device, Call::DeviceAttachIommufdPt, &mut attach) }
}

/// # Safety
/// As for [`with_structure`]; the calls are iommufd's.
unsafe fn of_iommufd<T>(fd: BorrowedFd<'_>, number: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: as promised by the caller; the reference is valid and nobody else's.
    let answer = unsafe {
        let number = request(iommufd_bindings::iommufd::IOMMUFD_TYPE, number);
        libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(argument))
    };
    result(answer).map(drop)
}

pub(super) fn new_table(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut new = iommu_ioas_alloc { size: size::<iommu_ioas_alloc>(), ..Default::default() };
    // SAFETY: IOAS_ALLOC takes this structure, and its length is in it.
    unsafe { of_iommufd(iommufd, IOMMUFD_CMD_IOAS_ALLOC, &mut new)? };
    Ok(new.out_ioas_id)
}

/// As [`map`], through a table of an iommufd.
pub(super) fn map_in(
    iommufd: BorrowedFd<'_>,
    table: u32,
    iova: u64,
    memory: &DmaMemory,
) -> io::Result<()> {
    let mut map = iommu_ioas_map {
        size: size::<iommu_ioas_map>(),
        flags: FIXED | READABLE | WRITEABLE,
        ioas_id: table,
        user_va: memory.address(),
        length: memory.length as u64,
        iova,
        ..Default::default()
    };
    // SAFETY: IOAS_MAP reads this structure; the address in it is that of a mapping of ours with
    // that length, of which no reference is ever made.
    unsafe { of_iommufd(iommufd, IOMMUFD_CMD_IOAS_MAP, &mut map) }
}

pub(super) fn unmap_in(
    iommufd: BorrowedFd<'_>,
    table: u32,
    iova: u64,
    length: u64,
) -> io::Result<u64> {
    let mut unmap =
        iommu_ioas_unmap { size: size::<iommu_ioas_unmap>(), ioas_id: table, iova, length };
    // SAFETY: IOAS_UNMAP takes this structure, and its length is in it.
    unsafe { of_iommufd(iommufd, IOMMUFD_CMD_IOAS_UNMAP, &mut unmap)? };
    Ok(unmap.length)
}

/// Memory that devices can be let to: whole pages of our own, zeros at first.
#[derive(Debug)]
pub struct DmaMemory {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: it is plain memory, used by copies only and from one place at a time (`&mut self`).
unsafe impl Send for DmaMemory {}

impl DmaMemory {
    /// `length` bytes, rounded up to pages.
    ///
    /// # Errors
    /// When the machine has not got them.
    pub fn new(length: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let length = length.max(1).next_multiple_of(page);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags)? };
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at nothing"))?;
        Ok(Self { start, length })
    }

    /// How many bytes it has.
    pub const fn length(&self) -> usize {
        self.length
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn byte(&self, offset: usize) -> Option<*mut u8> {
        // SAFETY: inside of the mapping, which is one object.
        (offset < self.length).then(|| unsafe { self.start.as_ptr().cast::<u8>().add(offset) })
    }

    /// Copies bytes out, as they are now; those beyond its end are zeros.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        for (index, byte) in to.iter_mut().enumerate() {
            let at = offset.checked_add(index).and_then(|at| self.byte(at));
            // SAFETY: inside of the mapping. A device may write at any time, hence volatile.
            *byte = at.map_or(0, |at| unsafe { at.read_volatile() });
        }
    }

    /// Copies bytes in; what goes beyond its end is dropped.
    pub fn write(&mut self, offset: usize, from: &[u8]) {
        for (index, byte) in from.iter().enumerate() {
            if let Some(at) = offset.checked_add(index).and_then(|at| self.byte(at)) {
                // SAFETY: inside of the mapping. A device may read at any time, hence volatile.
                unsafe { at.write_volatile(*byte) };
            }
        }
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours with this length, and nobody uses it any more. A device that
        // it is mapped for keeps the pages until it is unmapped there.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.length) };
    }
}
