//! Every rounding of every format, against exact arithmetic in integers.

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use crate::common::{Arg, Numbers, Run, TestMemory, values};
    use crate::oracle::{BRAIN, DOUBLE, Direction, Format, HALF, SINGLE};

    const DIRECTIONS: [(&str, Direction); 4] = [
        ("rn", Direction::Nearest),
        ("rz", Direction::Zero),
        ("rm", Direction::Down),
        ("rp", Direction::Up),
    ];

    /// Runs one instruction on `LANES` triples; the registers are `%a`, `%b`, `%c`.
    fn run(instruction: &str, (from, to): (u32, u32), inputs: &[[u64; 3]]) -> Vec<u64> {
        let source = format!(
            ".version 8.6\n.target sm_90\n.address_size 64\n.entry k(.param .u64 o, .param .u64 i) {{\n\
             .reg .b32 %t; .reg .b64 %in; .reg .b64 %out; .reg .b{from} %a; .reg .b{from} %b;\n\
             .reg .b{from} %c; .reg .b{to} %d; mov.u32 %t, %tid.x;\n\
             ld.param.u64 %out, [o]; ld.param.u64 %in, [i];\n\
             mad.wide.u32 %out, %t, 8, %out; mad.wide.u32 %in, %t, 24, %in;\n\
             ld.global.b{from} %a, [%in]; ld.global.b{from} %b, [%in+8]; ld.global.b{from} %c, [%in+16];\n\
             {instruction} st.global.b{to} [%out], %d; ret; }}"
        );
        let mut memory = TestMemory::default();
        let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|bits| bits.to_le_bytes()).collect();
        let (out, input) = (memory.add(&vec![0; 8 * inputs.len()]), memory.add(&bytes));
        let threads = u32::try_from(inputs.len()).expect("few");
        let run = Run { block: (threads, 1), ..Run::default() };
        run.go(&source, "k", &[Arg::U64(out), Arg::U64(input)], &memory).expect("no fault");
        values(memory.bytes_mut(out), u64::from_le_bytes)
    }

    fn name(format: Format) -> &'static str {
        match format.fraction {
            7 => "bf16",
            10 => "f16",
            23 => "f32",
            _ => "f64",
        }
    }

    fn width(format: Format) -> u32 {
        format.exponent + format.fraction + 1
    }

    /// Numbers of a format whose exponents lie within `spread` of one, often with few
    /// bits, so that results lie in the middle between two numbers now and then.
    fn numbers(format: Format, spread: u64, seed: u64, count: usize) -> Vec<[u64; 3]> {
        let mut numbers = Numbers::new(seed);
        let bias = (1_u64 << (format.exponent - 1)) - 1;
        let mut one = || {
            let exponent = bias - spread + numbers.wide() % (2 * spread + 1);
            let mut fraction = numbers.wide() & ((1 << format.fraction) - 1);
            if numbers.below(3) == 0 {
                fraction &= !((1 << numbers.below(format.fraction)) - 1);
            }
            let sign = if numbers.below(2) == 0 { format.sign() } else { 0 };
            sign | exponent << format.fraction | fraction
        };
        (0..count).map(|_| [one(), one(), one()]).collect()
    }

    /// How an instruction's exact result compares to a number in units of `2^-scale`.
    fn exact(
        format: Format,
        operation: &str,
        [a, b, c]: [u64; 3],
        scale: i32,
    ) -> Box<dyn Fn(i128) -> Ordering> {
        let fraction = i32::try_from(format.fraction).expect("narrow");
        // Enough for every operand: its spread and its fraction.
        let unit = fraction + if fraction == 52 { 1 } else { 10 };
        let [x, y] = [a, b].map(|bits| format.fixed(bits, unit));
        match operation {
            "div" | "rcp" => {
                let (x, y) = if operation == "rcp" { (1 << unit, x) } else { (x, y) };
                let (x, y) = if y < 0 { (-x, -y) } else { (x, y) };
                Box::new(move |value| (value * y).cmp(&(x << scale)))
            }
            "sqrt" => Box::new(move |value| (value * value).cmp(&(x << (2 * scale - unit)))),
            _ => {
                let z = format.fixed(c, scale);
                let product = (x * y) << (scale - 2 * unit);
                let sum = match operation {
                    "add" => format.fixed(a, scale) + format.fixed(b, scale),
                    "sub" => format.fixed(a, scale) - format.fixed(b, scale),
                    "mul" => product,
                    _ => product + z,
                };
                Box::new(move |value| value.cmp(&sum))
            }
        }
    }

    fn check(
        format: Format,
        operation: &str,
        (rounding, direction): (&str, Direction),
        spread: u64,
    ) {
        let mut inputs = numbers(format, spread, 11, 800);
        if operation == "sqrt" {
            inputs.iter_mut().for_each(|[a, ..]| *a &= format.sign() - 1);
        }
        let operands = match operation {
            "fma" => "%a, %b, %c",
            "rcp" | "sqrt" => "%a",
            _ => "%a, %b",
        };
        let instruction = format!("{operation}.{rounding}.{} %d, {operands};", name(format));
        let results = run(&instruction, (width(format), width(format)), &inputs);
        let scale = match (operation, format.fraction) {
            ("div" | "rcp" | "sqrt", 52) => 57,
            ("div" | "rcp", _) => 47,
            ("sqrt", _) => 32,
            (_, 52) => 108,
            (_, 23) => 100,
            _ => 60,
        };
        let mut inexact = 0;
        for (got, input) in results.into_iter().zip(inputs) {
            let compare = exact(format, operation, input, scale);
            let right = format.is_rounded(got, scale, direction, &compare);
            assert!(right, "{instruction} of {input:x?} gave {got:x}");
            inexact += u32::from(compare(format.fixed(got, scale)).is_ne());
        }
        assert!(inexact > 100, "{instruction}: only {inexact} results were rounded");
    }

    #[test]
    fn singles_and_doubles_in_every_direction() {
        for rounding in DIRECTIONS {
            for operation in ["add", "sub", "mul", "fma", "div", "rcp", "sqrt"] {
                check(SINGLE, operation, rounding, 10);
                check(DOUBLE, operation, rounding, 1);
            }
        }
    }

    #[test]
    fn halves_and_brain_floats_to_nearest() {
        for operation in ["add", "sub", "mul", "fma"] {
            check(HALF, operation, DIRECTIONS[0], 6);
            check(BRAIN, operation, DIRECTIONS[0], 10);
        }
    }

    #[test]
    fn conversions_between_formats_in_every_direction() {
        for (to, from, spread) in
            [(SINGLE, DOUBLE, 9), (HALF, SINGLE, 10), (BRAIN, SINGLE, 10), (HALF, DOUBLE, 10)]
        {
            for (rounding, direction) in DIRECTIONS {
                let inputs = numbers(from, spread, 12, 800);
                let instruction = format!("cvt.{rounding}.{}.{} %d, %a;", name(to), name(from));
                let results = run(&instruction, (width(from), width(to)), &inputs);
                for (got, [a, ..]) in results.into_iter().zip(inputs) {
                    let exact = from.fixed(a, 70);
                    let right = to.is_rounded(got, 70, direction, &|value| value.cmp(&exact));
                    assert!(right, "{instruction} of {a:x} gave {got:x}");
                }
            }
        }
    }

    #[test]
    fn pairs_are_two_halves() {
        for (format, ty) in [(HALF, "f16"), (BRAIN, "bf16")] {
            let inputs = numbers(format, 6, 13, 256);
            let join = |inputs: &[[u64; 3]]| -> Vec<[u64; 3]> {
                let pairs = inputs.chunks(2);
                pairs.map(|pair| [0, 1, 2].map(|i| pair[0][i] | pair[1][i] << 16)).collect()
            };
            for (operation, operands) in [
                ("add", "%a, %b"),
                ("mul", "%a, %b"),
                ("fma.rn", "%a, %b, %c"),
                ("fma.rn.relu", "%a, %b, %c"),
                ("min", "%a, %b"),
                ("max.NaN", "%a, %b"),
                ("neg", "%a"),
                ("abs", "%a"),
            ] {
                let single = run(&format!("{operation}.{ty} %d, {operands};"), (16, 16), &inputs);
                let pairs =
                    run(&format!("{operation}.{ty}x2 %d, {operands};"), (32, 32), &join(&inputs));
                let expected: Vec<u64> =
                    single.chunks(2).map(|pair| pair[0] | pair[1] << 16).collect();
                assert_eq!(pairs, expected, "{operation}.{ty}x2");
            }
        }
    }
}
