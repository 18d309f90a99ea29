//! Atomic operations on vectors and on 128 bits, against the CPU.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Numbers, Run, TestMemory, program, values};
    use crate::oracle::{BRAIN, Format, HALF};
    use gpuzone_sim_ptx::{Fault, Module};

    const LANES: usize = 32;

    /// An element's type, how many of its numbers are in one, and the format of these.
    #[derive(Clone, Copy)]
    struct Element {
        ty: &'static str,
        register: &'static str,
        numbers: usize,
        format: Format,
    }

    const ELEMENTS: [Element; 4] = [
        Element { ty: "f16", register: "rs", numbers: 1, format: HALF },
        Element { ty: "bf16", register: "rs", numbers: 1, format: BRAIN },
        Element { ty: "f16x2", register: "r", numbers: 2, format: HALF },
        Element { ty: "bf16x2", register: "r", numbers: 2, format: BRAIN },
    ];

    /// Lane `i` does `op` on the 16 bytes at `out + 16 i` with those at `out + 512 + 16 i`, and
    /// writes the old ones to `out + 1024 + 16 i`.
    fn vector_program(op: &str, kind: (&str, &str), count: usize, returns: bool) -> String {
        let (ty, register) = kind;
        let list = |first: usize| {
            let names = (first..first + count).map(|n| format!("%{register}{n}"));
            names.collect::<Vec<_>>().join(", ")
        };
        let moved = if register == "rs" { "b16" } else { "b32" };
        // A vector of two and more, and of at most what one access takes.
        let each = |what: &str, first: usize, at: usize| {
            let bytes = if register == "rs" { 2 } else { 4 };
            (0..count)
                .map(|n| match what {
                    "ld" => format!(
                        "ld.global.{moved} %{register}{}, [%rd1+{}];",
                        first + n,
                        at + n * bytes
                    ),
                    _ => format!(
                        "st.global.{moved} [%rd1+{}], %{register}{};",
                        at + n * bytes,
                        first + n
                    ),
                })
                .collect::<String>()
        };
        let operation = if returns {
            // The same registers for both: operands are read before results are written.
            format!("atom.global.{op}.v{count}.{ty} {{{}}}, [%rd1], {{{}}};", list(10), list(10))
        } else {
            format!("red.relaxed.gpu.global.{op}.v{count}.{ty} [%rd1], {{{}}};", list(10))
        };
        program(&format!(
            "mul.wide.u32 %rd2, %r0, 16; add.s64 %rd1, %rd0, %rd2; {} {operation} {} \
             add.s64 %rd0, %rd0, 2048; mov.u32 %r1, 0;",
            each("ld", 10, 512),
            each("st", 10, 1024),
        ))
        .replace(".reg .b16 %rs<10>", ".reg .b16 %rs<40>")
    }

    /// Runs it on numbers; all three parts of the memory afterwards.
    fn ran(source: &str, start: &[u8]) -> Vec<u8> {
        let mut memory = TestMemory::default();
        let all = [start, &[0; 2048 - 1024 + 128]].concat();
        let out = memory.add(&all);
        Run::default().go(source, "k", &[Arg::U64(out)], &memory).expect("no fault");
        memory.bytes_mut(out)[..1536].to_vec()
    }

    /// Finite numbers near one, of both signs, and zeros.
    fn numbers_of(format: Format, numbers: &mut Numbers, count: usize) -> Vec<u16> {
        let bias = (1 << (format.exponent - 1)) - 1;
        let number = |numbers: &mut Numbers| {
            let exponent = bias - 4 + numbers.below(8);
            let fraction = numbers.below(1 << format.fraction);
            let sign = numbers.below(2) << 15;
            if numbers.below(9) == 0 { sign } else { sign | exponent << format.fraction | fraction }
        };
        (0..count).map(|_| u16::try_from(number(numbers)).expect("16 bits")).collect()
    }

    fn expected(format: Format, op: &str, a: u16, b: u16) -> u16 {
        let value = |bits: u16| format.fixed(bits.into(), 24);
        let number = |exact: i128| {
            let nearest = nearest(format, exact);
            u16::try_from(nearest).expect("16 bits")
        };
        match op {
            // Two zeros of a sign keep it; two that cancel out are +0.
            "add" if value(a) + value(b) == 0 => a & b & 0x8000,
            "add" => number(value(a) + value(b)),
            "min" if value(a) == value(b) => a | b,
            "min" => {
                if value(a) < value(b) {
                    a
                } else {
                    b
                }
            }
            "max" if value(a) == value(b) => a & b,
            _ => {
                if value(a) > value(b) {
                    a
                } else {
                    b
                }
            }
        }
    }

    /// The number nearest to `exact` times 2^-24, among those around one.
    fn nearest(format: Format, exact: i128) -> u64 {
        let bias = (1_u64 << (format.exponent - 1)) - 1;
        let all = (bias - 13) << format.fraction..(bias + 9) << format.fraction;
        let distance = |bits: u64| (format.fixed(bits, 24) - exact.abs()).abs();
        let (mut low, mut high) = (all.start, all.end - 1);
        while low < high {
            let middle = u64::midpoint(low, high + 1);
            if format.fixed(middle, 24) <= exact.abs() { low = middle } else { high = middle - 1 }
        }
        let (below, above) = (distance(low), distance(low + 1));
        let up = above < below || (above == below && low & 1 == 1);
        let sign = if exact < 0 { format.sign() } else { 0 };
        sign | if up { low + 1 } else { low }
    }

    #[test]
    fn each_element_of_a_vector_of_halves_is_changed() {
        let mut numbers = Numbers::new(31);
        for element in ELEMENTS {
            let Element { ty, register, numbers: each, format } = element;
            for (count, op) in
                [2, 4, 8].into_iter().flat_map(|n| [(n, "add"), (n, "min"), (n, "max")])
            {
                if count * each > 8 {
                    continue;
                }
                let start = numbers_of(format, &mut numbers, 2 * LANES * 8);
                let bytes: Vec<u8> = start.iter().flat_map(|number| number.to_le_bytes()).collect();
                for returns in [true, false] {
                    let operation = format!("{op}.noftz");
                    let source = vector_program(&operation, (ty, register), count, returns);
                    let got = values(&ran(&source, &bytes), u16::from_le_bytes);
                    for at in (0..LANES * 8).filter(|at| at % 8 < count * each) {
                        let (old, with) = (start[at], start[LANES * 8 + at]);
                        let wanted = expected(format, op, old, with);
                        assert_eq!(got[at], wanted, "{ty} v{count} {op} {old:#x} {with:#x}");
                        let seen = got[2 * LANES * 8 + at];
                        assert_eq!(seen, if returns { old } else { with }, "{ty} v{count} {op}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_element_of_a_vector_of_singles_is_added_to() {
        let mut numbers = Numbers::new(32);
        for (count, returns) in [(2, true), (4, true), (2, false), (4, false)] {
            let start: Vec<f32> = (0..2 * LANES * 4).map(|_| numbers.float()).collect();
            let bytes: Vec<u8> = start.iter().flat_map(|number| number.to_le_bytes()).collect();
            let source = vector_program("add", ("f32", "f"), count, returns);
            let got = values(&ran(&source, &bytes), f32::from_le_bytes);
            for at in (0..LANES * 4).filter(|at| at % 4 < count) {
                let (old, with) = (start[at], start[LANES * 4 + at]);
                assert_eq!(got[at].to_bits(), (old + with).to_bits(), "v{count} {old} {with}");
                let seen = got[2 * LANES * 4 + at];
                assert_eq!(seen, if returns { old } else { with }, "v{count}");
            }
        }
    }

    #[test]
    fn blocks_that_change_the_same_vector_lose_nothing() {
        let body = "
            cvt.rn.f32.u32 %f1, %r0; mov.f32 %f2, 0f3F800000; mov.u32 %r1, 0;
            red.global.add.v4.f32 [%rd0+128], {%f2, %f1, %f2, %f2};";
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 40]);
        let run = Run { grid: (50, 1), threads: 2, ..Run::default() };
        run.go(&program(body), "k", &[Arg::U64(out)], &memory).expect("no fault");
        assert_eq!(memory.floats(out)[32..36], [1600.0, 24800.0, 1600.0, 1600.0]);
    }

    /// All threads count up one half of a number and down the other, in one piece.
    fn wide_counter(space: &str, address: &str) -> String {
        format!(
            "{{ .reg .b128 %old, %new, %seen; mov.u64 %rd3, 0; mov.u64 %rd4, 0;
             AGAIN: add.s64 %rd5, %rd3, 1; add.s64 %rd6, %rd4, -1;
             mov.b128 %old, {{%rd3, %rd4}}; mov.b128 %new, {{%rd5, %rd6}};
             atom{space}.cas.b128 %seen, [{address}], %old, %new;
             mov.b128 {{%rd7, %rd8}}, %seen;
             setp.ne.s64 %p1, %rd7, %rd3; setp.ne.s64 %p2, %rd8, %rd4; or.pred %p3, %p1, %p2;
             mov.u64 %rd3, %rd7; mov.u64 %rd4, %rd8; @%p3 bra AGAIN; }}"
        )
    }

    #[test]
    fn a_number_of_128_bits_is_changed_in_one_piece() {
        for space in ["", ".global"] {
            let body =
                format!("add.s64 %rd1, %rd0, 128; {} mov.u32 %r1, 0;", wide_counter(space, "%rd1"));
            let mut memory = TestMemory::default();
            let out = memory.add_words(&[0; 40]);
            let run = Run { grid: (40, 1), threads: 2, ..Run::default() };
            run.go(&program(&body), "k", &[Arg::U64(out)], &memory).expect("no fault");
            let got = values(&memory.bytes_mut(out)[128..144], u64::from_le_bytes);
            assert_eq!(got, [1280, 1280_u64.wrapping_neg()], "{space}");
        }
        let body = format!(
            ".shared .align 16 .b8 s[16]; mov.u32 %r5, s; {} bar.sync 0; ld.shared.u32 %r1, [s];",
            wide_counter(".shared", "%r5")
        );
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 96]);
        let run = Run { block: (96, 1), ..Run::default() };
        run.go(&program(&body), "k", &[Arg::U64(out)], &memory).expect("no fault");
        assert_eq!(memory.words(out), vec![96; 96]);
    }

    #[test]
    fn an_exchange_of_128_bits_gives_what_was_there() {
        let body = "
            { .reg .b128 %q<3>; mov.b128 %q0, {7, -1}; mov.b128 %q1, %q0;
            atom.global.exch.b128 %q2, [%rd0+16], %q1; mov.b128 {%rd1, %rd2}, %q2; }
            cvt.u32.u64 %r1, %rd2;";
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0, 0, 0, 0, 1, 2, 3, 4]);
        let run = Run { block: (1, 1), ..Run::default() };
        run.go(&program(body), "k", &[Arg::U64(out)], &memory).expect("no fault");
        assert_eq!(memory.words(out), [3, 0, 0, 0, 7, 0, u32::MAX, u32::MAX]);
    }

    #[test]
    fn what_is_not_aligned_or_not_there_is_a_fault() {
        let fault = |body: &str| {
            let mut memory = TestMemory::default();
            let out = memory.add_words(&[0; 32]);
            Run::default().go(&program(body), "k", &[Arg::U64(out)], &memory).expect_err("a fault")
        };
        let vector = "red.global.add.v4.f32 [%rd0+8], {%f1, %f2, %f3, %f4};";
        assert!(matches!(fault(vector), Fault::MisalignedAddress { bytes: 16, .. }));
        let vector = "red.global.add.v2.f32 [%rd0+128], {%f1, %f2};";
        assert!(matches!(fault(vector), Fault::IllegalAddress { write: true, .. }));
        let wide = |address: &str| {
            let exchange = format!("atom.exch.b128 %q, [{address}], %q;");
            fault(&format!(
                ".local .align 16 .b8 l[16]; {{ .reg .b128 %q; mov.u64 %rd1, l; cvta.local.u64 %rd1, %rd1; {exchange} }}"
            ))
        };
        assert!(matches!(wide("%rd0+8"), Fault::MisalignedAddress { bytes: 16, .. }));
        assert!(matches!(wide("%rd0+128"), Fault::IllegalAddress { .. }));
        assert!(matches!(wide("%rd1"), Fault::IllegalAddress { .. }), "local memory has none");
    }

    #[test]
    fn what_ptx_does_not_have_is_refused() {
        let refused = |body: &str| Module::parse(&program(body)).is_err();
        for body in [
            "red.global.add.v8.f32 [%rd1], {%f1, %f2, %f3, %f4, %f5, %f6, %f7, %f8};",
            "red.global.min.v2.f32 [%rd1], {%f1, %f2};",
            "red.global.add.v2.f64 [%rd1], {%fd1, %fd2};",
            "red.global.add.v2.u32 [%rd1], {%r1, %r2};",
            "red.shared.add.v2.f32 [%r1], {%f1, %f2};",
            "red.global.add.v2.f32 [%rd1], {%f1, %f2, %f3};",
            "atom.global.add.v2.f32 %f1, [%rd1], {%f1, %f2};",
            "{ .reg .b128 q; atom.add.b128 q, [%rd1], q; }",
            "{ .reg .b128 q; red.exch.b128 [%rd1], q; }",
            "atom.exch.b128 %rd1, [%rd1], %rd2;",
            "{ .reg .b128 q; st.global.u64 [%rd1], q; }",
            "{ .reg .b128 q; st.global.u8 [%rd1], q; }",
            "{ .reg .b128 q; ld.global.u64 q, [%rd1]; }",
            "{ .reg .b128 q; add.u64 q, %rd1, %rd2; }",
            "{ .reg .b128 q; cvt.u64.u32 q, %r1; }",
            "{ .reg .b128 q; mov.b128 q, 5; }",
            "{ .reg .b128 q; mov.b128 q, {%r1, %r2, %r3, %r4}; }",
            "{ .reg .b128 q; mov.b128 q, {%rd1, %rd2, %rd3}; }",
            "{ .reg .b128 q; ld.global.u32 %r1, [q]; }",
            ".local .b128 x;",
        ] {
            assert!(refused(body), "{body}");
        }
    }
}
