//! Whether a guest runs on an accelerator here, learnt by running one.
//!
//! `/dev/kvm` that opens proves nothing: under a hypervisor without nesting, or one that nests
//! badly, a guest dies in its first second. So a guest of 512 bytes is booted, which says a word
//! over the machine's debug port and ends QEMU by a code of its own.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Accelerator, Hypervisor};

/// What QEMU's exit device makes of the byte 0x10: twice it and one.
const EXIT: i32 = 0x21;
/// What the payload says over the debug port.
const SAID: &[u8] = b"GZ";
/// How long a probe may take.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// Why a guest does not run on an accelerator.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The probe's files or processes could not be made.
    #[error("cannot probe {}: {source}", .accelerator.as_str())]
    Io {
        /// Which.
        accelerator: Accelerator,
        /// Why.
        source: io::Error,
    },
    /// The guest did not say its word.
    #[error("a guest does not run on {}: {said}", .accelerator.as_str())]
    Dead {
        /// Which.
        accelerator: Accelerator,
        /// The hypervisor's last word.
        said: String,
    },
}

/// A boot sector: enters 32-bit mode, where real guests spend their lives, does arithmetic in it,
/// and reports.
fn payload() -> [u8; 512] {
    const CODE: &[u8] = &[
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x0f, 0x01, 0x16, 0x60, 0x7c, // lgdt [0x7c60]
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x66, 0x83, 0xc8, 0x01, // or eax, 1
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xea, 0x1a, 0x7c, 0x08, 0x00, // jmp 0x08:0x7c1a
        0x90, // nop
        // 0x7c1a, 32 bits:
        0xb9, 0x10, 0x00, 0x00, 0x00, // mov ecx, 16
        0x31, 0xc0, // xor eax, eax
        0x01, 0xc8, // again: add eax, ecx
        0xe2, 0xfc, // loop again
        0x2d, 0x41, 0x00, 0x00, 0x00, // sub eax, 136 - 'G'
        0x66, 0xba, 0x02, 0x04, // mov dx, 0x402
        0xee, // out dx, al
        0xb0, 0x5a, // mov al, 'Z'
        0xee, // out dx, al
        0x66, 0xba, 0x01, 0x05, // mov dx, 0x501
        0xb0, 0x10, // mov al, 0x10
        0xee, // out dx, al
        0xf4, // hlt
    ];
    // Null, then code over all of memory; then where and how long that table is.
    const TABLE: &[u8] = &[
        0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // 0x7c50
        0x0f, 0, 0x50, 0x7c, 0, 0, // 0x7c60
    ];
    let mut sector = [0; 512];
    for (to, from) in sector.iter_mut().zip(CODE) {
        *to = *from;
    }
    for (to, from) in sector.iter_mut().skip(0x50).zip(TABLE) {
        *to = *from;
    }
    sector[510] = 0x55;
    sector[511] = 0xaa;
    sector
}

/// How it is learnt whether a guest runs under a hypervisor: what is started, on which payload as its
/// standard input, and how it ends when the guest says its word on the standard output.
pub trait Probe: Sync {
    /// The hypervisor's arguments.
    fn arguments(&self, accelerator: Accelerator) -> Vec<String>;

    /// What the guest runs.
    fn payload(&self) -> Vec<u8>;

    /// The hypervisor's exit code when the guest had it end.
    fn code(&self) -> i32;

    /// The hypervisor's name.
    fn who(&self) -> &'static str;

    /// The payload, as a file.
    ///
    /// # Errors
    /// When the kernel gives none.
    fn file(&self) -> io::Result<File> {
        let file = rustix::fs::memfd_create(c"gpu-zone-probe", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(&self.payload())?;
        file.rewind()?;
        Ok(file)
    }

    /// What a probe that ended so, if it did, says of the accelerator.
    ///
    /// # Errors
    /// When a guest does not run on it.
    fn judged(
        &self,
        accelerator: Accelerator,
        ended: Option<(Option<i32>, String)>,
        word: &[u8],
        errors: &[u8],
    ) -> Result<(), ProbeError> {
        let well = ended.as_ref().is_some_and(|(code, _)| *code == Some(self.code()));
        if well && word.ends_with(SAID) {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(errors);
        let line = errors.lines().find(|line| !line.trim().is_empty());
        let said = match (line, ended) {
            (Some(line), _) => line.chars().take(300).collect(),
            (None, Some((_, how))) => format!("{} ended with {how}", self.who()),
            (None, None) => format!("it did nothing for {} s", PROBE_LIMIT.as_secs()),
        };
        Err(ProbeError::Dead { accelerator, said })
    }
}

/// QEMU boots a sector.
pub(super) struct QemuProbe;

impl Probe for QemuProbe {
    fn arguments(&self, accelerator: Accelerator) -> Vec<String> {
        let machine = format!("pc,accel={}", accelerator.as_str());
        let cpu = match accelerator {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        };
        let words = [
            "-nodefaults -no-user-config -no-reboot -display none -m 16",
            "-sandbox on,spawn=deny,elevateprivileges=deny",
            "-drive file=/proc/self/fd/0,format=raw,if=ide -chardev stdio,id=word,signal=off",
            "-device isa-debugcon,iobase=0x402,chardev=word",
            "-device isa-debug-exit,iobase=0x501,iosize=1",
        ];
        let words = words.iter().flat_map(|words| words.split(' '));
        words.chain(["-machine", &machine, "-cpu", cpu]).map(str::to_owned).collect()
    }

    fn payload(&self) -> Vec<u8> {
        payload().into()
    }

    fn code(&self) -> i32 {
        EXIT
    }

    fn who(&self) -> &'static str {
        "QEMU"
    }
}

/// Boots the payload on `accelerator`.
///
/// # Errors
/// When it does not say its word; what the hypervisor said instead.
pub fn probe(
    hypervisor: Hypervisor,
    program: &Path,
    accelerator: Accelerator,
) -> Result<(), ProbeError> {
    let probe = hypervisor.probe();
    let failed = |source| ProbeError::Io { accelerator, source };
    let mut child = Command::new(program)
        .args(probe.arguments(accelerator))
        .env_clear()
        .stdin(probe.file().map_err(failed)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let end = Instant::now() + PROBE_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break Some(status);
        }
        if Instant::now() > end {
            child.kill().map_err(failed)?;
            child.wait().map_err(failed)?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (word, errors) = (read(child.stdout.take()), read(child.stderr.take()));
    let ended = status.map(|status| (status.code(), status.to_string()));
    probe.judged(accelerator, ended, &word, &errors)
}

fn read(stream: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What cannot be read was not said.
        let _ = stream.take(64 << 10).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_says_nothing_is_dead_whoever_ends_well() {
        for not_qemu in ["/bin/true", "/bin/false"] {
            let probed = probe(Hypervisor::Qemu, Path::new(not_qemu), Accelerator::Kvm);
            assert!(matches!(probed, Err(ProbeError::Dead { .. })), "{not_qemu}: {probed:?}");
        }
        let nothing = probe(Hypervisor::Qemu, Path::new("/nowhere/qemu"), Accelerator::Tcg);
        assert!(matches!(nothing, Err(ProbeError::Io { .. })));
    }

    #[test]
    fn a_guest_runs_by_emulation_where_qemu_is_installed() {
        let qemu = Path::new("/usr/bin/qemu-system-x86_64");
        if !qemu.exists() {
            eprintln!("skipped: QEMU is not installed");
            return;
        }
        probe(Hypervisor::Qemu, qemu, Accelerator::Tcg).unwrap();
    }
}
