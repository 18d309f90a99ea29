//! Mutated and random PTX: the parser answers, and what it accepts stays within
//! the memory that it was given.

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use crate::common::{TestMemory, program};
    use gpuzone_sim_ptx::{Dim3, Launch, Module, PrintBuffer, execute_within};
    use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};

    const SEEDS: [&str; 14] = [
        include_str!("../../../kernels/ptx/vector_add.ptx"),
        include_str!("../../../kernels/ptx/matmul_tiled.ptx"),
        include_str!("../../../kernels/ptx/reduce.ptx"),
        include_str!("../../../kernels/ptx/softmax.ptx"),
        include_str!("../../../kernels/ptx/histogram.ptx"),
        include_str!("../../../kernels/ptx/faults.ptx"),
        include_str!("../../../kernels/ptx/calls.ptx"),
        include_str!("../../../kernels/ptx/print.ptx"),
        include_str!("../../../kernels/ptx/half.ptx"),
        include_str!("../../../kernels/ptx/bfloat.ptx"),
        include_str!("../../../kernels/ptx/bits.ptx"),
        include_str!("../../../kernels/ptx/sort.ptx"),
        include_str!("../../../kernels/ptx/structs.ptx"),
        ".version 8.0 .target sm_75 .entry k() { ret; }",
    ];

    /// Pieces that change what a text means more often than random bytes do.
    const PIECES: [&str; 37] = [
        ";",
        "{",
        "}",
        "@%p1 ",
        "%r1",
        "%rd1",
        "%f2",
        "-1",
        "0x7fffffff",
        "4294967296",
        ".u64",
        ".f32",
        ".v4",
        ".sync",
        ".shared",
        ".global",
        "bar.sync 0;",
        "ret;",
        "bra $L__BB0_3;",
        "shfl.sync.up.b32 %r1, %r2, %r3, %r4, %r5;",
        "st.global.u64 [%rd1+8], %rd2;",
        "ld.u64 %rd1, [%rd2];",
        "atom.add.u64 %rd1, [%rd1], %rd2;",
        ".local .b8 q[64];",
        ".param .b64 param0;",
        "call.uni (retval0), vprintf, (param0, param1);",
        "call (retval0), %rd1, (param0), prototype_0;",
        "call _Z7collatzj;",
        "brx.idx %r1, $L_brx_0;",
        "generic(primes)+4",
        "_Z5addedff",
        "st.param.b64 [param0+4096], %rd1;",
        "fma.rn.relu.bf16x2 %r1, %r2, %r3, %r4;",
        "cp.async.cg.shared.global [%r1], [%rd2], 16, %r3;",
        ".reg .b128 %q<3>;",
        "atom.shared.exch.b128 %q1, [%r1], %q2;",
        "atom.global.min.noftz.v4.f16x2 {%r1, _, %r3, %r4}, [%rd1], {%r5, %r6, %r7, %r8};",
    ];

    /// What random instructions call: one function calls the other.
    const FUNCTIONS: &str = "
        .extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
        .func (.param .b64 r) f0(.param .b64 a) { .reg .b64 %d<4>; ld.param.u64 %d0, [a];
        add.u64 %d0, %d0, 8; st.param.b64 [r], %d0; ret; }
        .func (.param .b64 r) f1(.param .b64 a) { .reg .b64 %d<4>; .reg .pred %q; ld.param.u64 %d0, [a];
        setp.lt.u64 %q, %d0, 9; @%q ret; { .param .b64 x; .param .b64 y; st.param.b64 [x], %d0;
        call (y), f0, (x); ld.param.b64 %d1, [y]; st.param.b64 [r], %d1; } }
        ";

    fn pieces() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(&PIECES[..]).prop_map(str::to_owned),
            "[ -~]{0,8}",
            any::<u64>().prop_map(|number| number.to_string()),
            Just(String::new()),
        ]
    }

    /// Line by line changes: replace, drop or repeat; then some bytes.
    fn mutated() -> impl Strategy<Value = String> {
        let edits =
            prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, pieces()), 1..6);
        (prop::sample::select(&SEEDS[..]), edits).prop_map(|(seed, edits)| {
            let mut text = seed.to_owned();
            for (at, length, piece) in edits {
                // The seeds are ASCII, and so are the pieces.
                let start = at.index(text.len().max(1));
                let end = (start + length).min(text.len());
                text.replace_range(start..end, &piece);
            }
            text
        })
    }

    /// Random instructions over a few registers, most of which parse.
    fn instructions() -> impl Strategy<Value = String> {
        let one = prop_oneof![
            (0..10_u8, 0..10_u8, any::<u32>())
                .prop_map(|(d, a, b)| format!("mad.lo.u32 %r{d}, %r{a}, %r{d}, {b};")),
            (0..10_u8, 0..10_u8).prop_map(|(d, a)| format!("ld.u32 %r{d}, [%rd{a}];")),
            (0..10_u8, 0..10_u8, -64..256_i16)
                .prop_map(|(d, a, o)| format!("st.u64 [%rd{a}+{o}], %rd{d};")),
            (0..10_u8, 0..10_u8, 0..10_u8, -300..300_i16)
                .prop_map(|(p, d, a, o)| format!("@%p{p} add.s64 %rd{d}, %rd{a}, {o};")),
            (0..10_u8, 0..10_u8).prop_map(|(p, a)| format!("setp.lt.u32 %p{p}, %r0, %r{a};")),
            (0..10_u8, 0..4_u8).prop_map(|(p, l)| format!("@%p{p} bra L{l};")),
            (0..10_u8, 0..10_u8).prop_map(|(p, a)| format!("@%p{p} bar.warp.sync %r{a};")),
            (0..10_u8, 0..10_u8)
                .prop_map(|(d, a)| format!("shfl.sync.idx.b32 %r{d}, %r{a}, %r{d}, %r{a}, -1;")),
            (0..10_u8).prop_map(|p| format!("@%p{p} bar.sync {};", p / 5)),
            (0..10_u8, 0..10_u8).prop_map(|(d, a)| format!("cvta.shared.u64 %rd{d}, %rd{a};")),
            (0..10_u8, 0..10_u8)
                .prop_map(|(d, a)| format!("atom.cas.b64 %rd{d}, [%rd{a}], %rd{d}, %rd{a};")),
            (0..10_u8, 0..10_u8).prop_map(|(a, b)| format!(
                "{{ .reg .b128 q; mov.b128 q, {{%rd{a}, %rd{b}}}; atom.cas.b128 q, [%rd{a}], q, q; mov.b128 {{%rd{b}, _}}, q; }}"
            )),
            (0..10_u8, 0..8_u8).prop_map(|(a, f)| format!(
                "red.global.add.v2.f32 [%rd{a}], {{%f{f}, %f{a}}};"
            )),
            (0..10_u8).prop_map(|d| format!("mov.u32 %r{d}, %envreg2;")),
            (0..10_u8, 0..10_u8).prop_map(|(d, a)| format!("cvt.rzi.u64.f32 %rd{d}, %f{a};")),
            (0..10_u8, 0..10_u8)
                .prop_map(|(d, a)| format!("fma.rm.ftz.f32 %f{d}, %f{a}, %f{d}, %f{a};")),
            (0..10_u8, 0..10_u8).prop_map(|(d, a)| format!("div.s32 %r{d}, %r{a}, %r{d};")),
            (0..10_u8, 0..10_u8)
                .prop_map(|(d, a)| format!("cvt.rm.f16.f64 %rs{d}, %fd{a}; fma.rz.f64 %fd{a}, %fd{d}, %fd{a}, %fd{d};")),
            (0..10_u8, 0..10_u8)
                .prop_map(|(d, a)| format!("fma.rn.sat.f16x2 %r{d}, %r{a}, %r{d}, %r{a};")),
            (0..10_u8, 0..10_u8).prop_map(|(a, f)| format!(
                "{{ .param .b64 x; .param .b64 y; st.param.b64 [x], %rd{a}; call (y), f{}, (x); ld.param.b64 %rd{a}, [y]; }}",
                f % 2
            )),
            (0..10_u8, 0..10_u8).prop_map(|(p, a)| format!("@%p{p} mov.u64 %rd{a}, f1;")),
            (0..10_u8, 0..10_u8).prop_map(|(p, a)| format!("@%p{p} call %rd{a};")),
            (0..10_u8, 0..10_u8).prop_map(|(a, b)| format!(
                "{{ .param .b64 x; .param .b64 y; .param .b32 z; st.param.b64 [x], %rd{a}; st.param.b64 [y], %rd{b}; call (z), vprintf, (x, y); }}"
            )),
            (0..10_u8, 0..10_u8, 0..10_u8)
                .prop_map(|(a, b, c)| format!("cp.async.ca.shared.global [%r{a}], [%rd{b}], 8, %r{c};")),
            Just("{ .shared .b64 s; cvta.shared.u64 %rd3, %rd3; }".to_owned()),
        ];
        prop::collection::vec(one, 1..40).prop_map(|lines| {
            let quarter = lines.len() / 4;
            let labels =
                (0..4).map(|i| format!("L{i}: {}", lines[i * quarter..][..quarter].join(" ")));
            let program = program(&labels.collect::<Vec<_>>().join("\n"));
            program.replacen(".visible", &format!("{FUNCTIONS}.visible"), 1)
        })
    }

    /// Runs all kernels of a text that parses, on little memory, for a short time.
    fn run(source: &str) {
        let Ok(module) = Module::parse(source) else { return };
        let (cancel, prints) = (AtomicBool::new(false), PrintBuffer::new(1 << 12));
        let mut memory = TestMemory::default();
        let before = memory.add_words(&[0x1111_1111; 4]);
        let (first, second) = (memory.add_words(&[3; 64]), memory.add_words(&[5; 64]));
        let after = memory.add_words(&[0x2222_2222; 4]);
        memory.protect(before);
        memory.protect(after);
        let globals = vec![first; module.globals().len()];
        for kernel in module.kernels() {
            let size = kernel.params().iter().map(|param| param.offset + param.size).max();
            let addresses = first.to_le_bytes().into_iter().chain(second.to_le_bytes());
            let params: Vec<u8> = addresses.cycle().take(size.unwrap_or(0) as usize).collect();
            for threads in [33, 64] {
                let launch = Launch {
                    grid: Dim3::new(2, 1, 1),
                    block: Dim3::new(threads, 1, 1),
                    dynamic_shared_bytes: 64,
                    cooperative: false,
                    params: &params,
                    globals: &globals,
                    prints: &prints,
                    cancel: &cancel,
                    threads: 2,
                    clock_hz: 1,
                };
                // Faults are the point; panics and stray writes are not.
                let _ = execute_within(&module, kernel, &launch, &memory, 20_000);
            }
        }
        assert_eq!(memory.words(before), [0x1111_1111; 4]);
        assert_eq!(memory.words(after), [0x2222_2222; 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn mutated_kernels_do_no_harm(source in mutated()) {
            run(&source);
        }

        #[test]
        fn random_instructions_do_no_harm(source in instructions()) {
            run(&source);
        }

        #[test]
        fn random_text_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            run(&String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn most_of_the_random_instructions_parse() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;
        let mut runner = TestRunner::deterministic();
        let parsed = (0..50)
            .filter(|_| {
                let tree = instructions().new_tree(&mut runner).expect("a text");
                Module::parse(&tree.current()).is_ok()
            })
            .count();
        assert!(parsed > 25, "only {parsed} of 50 texts parse: the test above tests too little");
    }
}
