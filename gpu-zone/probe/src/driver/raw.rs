//! The kernel drivers' own calls, without a library. Only those that ask for a version.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::host;

/// `nv_ioctl_rm_api_version_t` of NVIDIA's open kernel modules.
#[repr(C)]
struct NvidiaVersion {
    command: u32,
    reply: u32,
    text: [u8; 64],
}

/// `NV_RM_API_VERSION_CMD_QUERY`: tell the version, compare nothing.
const QUERY: u32 = b'2' as u32;
/// `NV_ESC_CHECK_VERSION_STR`.
const CHECK_VERSION: Opcode = opcode::read_write::<NvidiaVersion>(b'F', 210);

/// `struct drm_version` with no room for texts.
#[repr(C)]
#[derive(Default)]
struct DrmVersion {
    numbers: [i32; 3],
    texts: [usize; 6],
}

const DRM_VERSION: Opcode = opcode::read_write::<DrmVersion>(b'd', 0);

/// `struct kfd_ioctl_get_version_args`.
#[repr(C)]
#[derive(Default)]
struct KfdVersion {
    major: u32,
    minor: u32,
}

const KFD_VERSION: Opcode = opcode::read::<KfdVersion>(b'K', 1);

/// Asks the driver behind a node for its version; what it answered.
pub(crate) fn version(path: &Path) -> Option<String> {
    let node = host::opens(path, true).ok()?;
    let name = host::name(path);
    if name == "nvidiactl" {
        return nvidia(node);
    }
    if name == "kfd" {
        let mut version = KfdVersion::default();
        // SAFETY: the number says how long the structure is, and the driver fills it in.
        unsafe { ioctl(node.as_fd(), Updater::<KFD_VERSION, _>::new(&mut version)) }.ok()?;
        return Some(format!("amdkfd {}.{}", version.major, version.minor));
    }
    let mut version = DrmVersion::default();
    // SAFETY: as above; the lengths of the texts are zero, so none is written.
    unsafe { ioctl(node.as_fd(), Updater::<DRM_VERSION, _>::new(&mut version)) }.ok()?;
    let [major, minor, patch] = version.numbers;
    // Never zero in a driver; read so that the fields have a reader.
    let known = version.texts.iter().any(|length| *length > 0);
    known.then(|| format!("DRM driver {major}.{minor}.{patch}"))
}

fn nvidia(node: impl AsFd) -> Option<String> {
    let mut version = NvidiaVersion { command: QUERY, reply: 0, text: [0; 64] };
    // SAFETY: the number says how long the structure is, and the driver fills it in.
    unsafe { ioctl(node.as_fd(), Updater::<CHECK_VERSION, _>::new(&mut version)) }.ok()?;
    let text = version.text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text).into_owned();
    Some(format!("NVIDIA driver {text} (reply {})", version.reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        // _IOWR('F', 210, 72), _IOWR('d', 0, 64) and _IOR('K', 1, 8).
        assert_eq!(
            (CHECK_VERSION, DRM_VERSION, KFD_VERSION),
            (0xc048_46d2, 0xc040_6400, 0x8008_4b01)
        );
    }

    #[test]
    fn a_file_that_is_no_driver_answers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nvidiactl", "kfd", "card0"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            assert_eq!(version(&path), None);
        }
    }
}
