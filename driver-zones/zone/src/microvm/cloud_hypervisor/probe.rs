//! Whether a guest runs: a kernel of 300 bytes says a word over the serial port and turns the machine
//! off.

use crate::microvm::Accelerator;
use crate::microvm::probe::Probe;

/// Where it lies in memory.
const ADDRESS: u64 = 0x10_0000;
/// Where in it the code is.
const CODE_AT: usize = 0x100;
/// Where the note is that says where a guest begins that is entered with 32 bits.
const NOTE_AT: usize = 0xb0;

/// Entered by PVH, as the zones' own kernels are where they are unpacked.
pub(super) struct PvhProbe;

impl Probe for PvhProbe {
    fn arguments(&self, _accelerator: Accelerator) -> Vec<String> {
        let words = "--kernel /proc/self/fd/0 --cpus boot=1 --memory size=64M --console off \
                     --serial file=/proc/self/fd/1 --seccomp true";
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn payload(&self) -> Vec<u8> {
        payload()
    }

    fn code(&self) -> i32 {
        0
    }

    fn who(&self) -> &'static str {
        "Cloud Hypervisor"
    }
}

fn payload() -> Vec<u8> {
    const CODE: &[u8] = &[
        0xb9, 0x10, 0x00, 0x00, 0x00, // mov ecx, 16
        0x31, 0xc0, // xor eax, eax
        0x01, 0xc8, // again: add eax, ecx
        0xe2, 0xfc, // loop again
        0x2d, 0x41, 0x00, 0x00, 0x00, // sub eax, 136 - 'G'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xb0, 0x5a, // mov al, 'Z'
        0xee, // out dx, al
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600: ACPI's, and S5
        0xb0, 0x34, // mov al, 0x34
        0xee, // out dx, al
        0xf4, // again: hlt
        0xeb, 0xfd, // jmp again
    ];
    let length = CODE_AT + CODE.len();
    let mut file = vec![0; length];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in file.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let (entry, length) = (ADDRESS + CODE_AT as u64, length as u64);
    // ELF, 64 bits, little-endian; an executable for x86-64.
    put(0x00, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(0x10, &[2, 0, 0x3e, 0, 1]);
    put(0x18, &entry.to_le_bytes());
    put(0x20, &64u64.to_le_bytes());
    // Sizes of the header and of the two program headers.
    put(0x34, &[64, 0, 56, 0, 2]);
    // To be loaded, all of it: flags, then place in the file, twice in memory, and sizes.
    put(0x40, &[1, 0, 0, 0, 7]);
    put(0x50, &ADDRESS.to_le_bytes());
    put(0x58, &ADDRESS.to_le_bytes());
    put(0x60, &length.to_le_bytes());
    put(0x68, &length.to_le_bytes());
    put(0x70, &0x1000u64.to_le_bytes());
    // A note.
    put(0x78, &[4, 0, 0, 0, 4]);
    put(0x80, &(NOTE_AT as u64).to_le_bytes());
    put(0x98, &24u64.to_le_bytes());
    put(0xa0, &24u64.to_le_bytes());
    put(0xa8, &4u64.to_le_bytes());
    // Xen's 18th: the entry. Name and value of four and eight bytes.
    put(NOTE_AT, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
    put(NOTE_AT + 12, b"Xen\0");
    put(NOTE_AT + 16, &entry.to_le_bytes());
    put(CODE_AT, CODE);
    file
}
