//! What sysfs' files say, from their text. Pure, and never wrong about where a text ends: these
//! are targets of the fuzzer.

use gpuzone_core::devices::ResetMethod;

use super::{Bar, BarSpace, VgpuType};

/// The kernel's flags of a resource.
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;
/// A function has so many BARs at most; the lines behind them are of its ROM and of bridges.
const BARS: usize = 6;

/// A number as sysfs writes it, `0x030200`.
pub fn hex(text: &str) -> Option<u32> {
    let digits = text.trim().strip_prefix("0x")?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u32::from_str_radix(digits, 16).ok() } else { None }
}

/// A count as sysfs writes it.
pub fn count(text: &str) -> Option<u32> {
    let digits = text.trim();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// The BARs of a `resource` file: a line `start end flags` for each resource, zeros where there is
/// none. A line that is none of that is passed over.
pub fn bars(text: &str) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (index, line) in (0u8..).zip(text.lines().take(BARS)) {
        let mut parts = line.split_ascii_whitespace().map(address);
        let (Some(Some(start)), Some(Some(end)), Some(Some(flags)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let Some(size) = end.checked_sub(start).and_then(|last| last.checked_add(1)) else {
            continue;
        };
        let space = match (flags & IORESOURCE_IO != 0, flags & IORESOURCE_MEM != 0) {
            (true, _) => BarSpace::Io,
            (false, true) => BarSpace::Memory {
                prefetchable: flags & IORESOURCE_PREFETCH != 0,
                wide: flags & IORESOURCE_MEM_64 != 0,
            },
            (false, false) => continue,
        };
        bars.push(Bar { index, size, space });
    }
    bars
}

/// The ways of a `reset_method` file, in the kernel's order; a newer kernel's are passed over.
pub fn reset_methods(text: &str) -> Vec<ResetMethod> {
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The types of NVIDIA's `creatable_vgpu_types`: a heading, and lines `number : name`.
pub fn vgpu_types(text: &str) -> Vec<VgpuType> {
    let line = |line: &str| {
        let (number, name) = line.split_once(':')?;
        Some(VgpuType { id: count(number)?, name: name.trim().to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// The name of a driver or module, as the kernel would take it for a file's.
pub fn is_name(text: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    !text.is_empty() && text.len() < 64 && text.bytes().all(letters) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As an H100's reads.
    const RESOURCE: &str = "\
0x0000043040000000 0x0000043040ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000042000000000 0x0000043fffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000043042000000 0x0000043043ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
";

    #[test]
    fn bars_have_their_numbers_and_sizes() {
        let memory = BarSpace::Memory { prefetchable: true, wide: true };
        let bar = |index, size| Bar { index, size, space: memory };
        assert_eq!(bars(RESOURCE), [bar(0, 16 << 20), bar(2, 128 << 30), bar(4, 32 << 20)]);
        let io = "0x000000000000c000 0x000000000000c07f 0x0000000000040101\n";
        assert_eq!(bars(io), [Bar { index: 0, size: 128, space: BarSpace::Io }]);
        for wrong in [
            "0x2 0x1 0x200",
            "0x0 0xffffffffffffffff 0x200",
            "1 2 3",
            "0x0 0x1",
            "0x 0x1 0x200",
            "0x0 0x1 0x200 0x0",
        ] {
            assert_eq!(bars(wrong), [], "{wrong}");
        }
    }

    #[test]
    fn types_of_vgpus_are_those_with_a_number() {
        let text = "ID    : vGPU Name\n941   : NVIDIA RTX6000-Ada-1B\n 942:NVIDIA: odd\n:\n";
        let found = vgpu_types(text);
        let names: Vec<(u32, &str)> =
            found.iter().map(|found| (found.id, found.name.as_str())).collect();
        assert_eq!(names, [(941, "NVIDIA RTX6000-Ada-1B"), (942, "NVIDIA: odd")]);
        assert_eq!(vgpu_types("None of the types\n"), []);
    }

    #[test]
    fn numbers_are_plain_ones() {
        assert_eq!(hex("0x030200\n"), Some(0x03_0200));
        assert_eq!(count("16\n"), Some(16));
        for wrong in ["", "0x", "0x+1", "0x1 2", "ffffff", "0x1ffffffff"] {
            assert_eq!(hex(wrong), None, "{wrong}");
        }
        for wrong in ["", "-1", "+1", "1 2", "99999999999"] {
            assert_eq!(count(wrong), None, "{wrong}");
        }
        let ways = reset_methods("flr bus warp\n");
        assert_eq!(ways, [ResetMethod::Flr, ResetMethod::Bus]);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(?s).{0,300}") {
            crate::fuzz::sysfs_text(text.as_bytes());
        }

        #[test]
        fn resources_of_any_numbers_are_answered(lines in prop::collection::vec(any::<[u64; 3]>(), 0..9)) {
            let line = |[start, end, flags]: &[u64; 3]| format!("{start:#018x} {end:#018x} {flags:#018x}\n");
            let text: String = lines.iter().map(line).collect();
            for bar in bars(&text) {
                let [start, end, _] = lines[usize::from(bar.index)];
                prop_assert_eq!(bar.size - 1, end - start);
            }
        }
    }
}
