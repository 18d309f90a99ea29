//! The table of what is supported, in `docs/simulated-gpu.md`: made from here, and
//! each line's examples are parsed.

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;

    use crate::common::program;
    use gpuzone_sim_ptx::Module;

    /// Instructions, what of them, examples of the least usual forms, and the tests
    /// that prove what they do.
    type Line = (&'static str, &'static str, &'static [&'static str], &'static str);

    const SUPPORTED: &[Line] = &[
        (
            "add, sub, mul, mad, div, rem, min, max, abs, neg, sad",
            "integers of 16, 32 and 64 bits; .lo .hi .wide .sat .relu; pairs of 16 bits",
            &[
                "mad.hi.sat.s32 %r1, %r2, %r3, %r4;",
                "mul.wide.u16 %r1, %rs1, %rs2;",
                "rem.s64 %rd1, %rd2, %rd3;",
                "max.s16x2 %r1, %r2, %r3;",
                "min.relu.s32 %r1, %r2, %r3;",
                "sad.u64 %rd1, %rd2, %rd3, %rd4;",
            ],
            "differential, corpus_linear",
        ),
        (
            "add.cc, addc, sub.cc, subc, mad.cc, madc",
            "32 and 64 bits",
            &["madc.hi.cc.u64 %rd1, %rd2, %rd3, %rd4;", "subc.cc.s32 %r1, %r2, %r3;"],
            "differential, corpus_linear",
        ),
        (
            "mul24, mad24, dp4a, dp2a",
            "",
            &["mad24.hi.s32 %r1, %r2, %r3, %r4;", "dp2a.hi.s32.u32 %r1, %r2, %r3, %r4;"],
            "arithmetic, corpus_linear",
        ),
        (
            "and, or, xor, not, cnot, lop3, shl, shr, shf",
            "predicates too, where PTX has them",
            &[
                "lop3.b32 %r1, %r2, %r3, %r4, 0x96;",
                "shf.r.clamp.b32 %r1, %r2, %r3, %r4;",
                "cnot.b64 %rd1, %rd2;",
            ],
            "differential, arithmetic",
        ),
        (
            "popc, clz, brev, bfind, bfe, bfi, bmsk, szext, fns, prmt",
            "all modes",
            &[
                "bfind.shiftamt.s64 %r1, %rd1;",
                "bmsk.wrap.b32 %r1, %r2, %r3;",
                "szext.clamp.s32 %r1, %r2, %r3;",
                "fns.b32 %r1, %r2, %r3, %r4;",
                "prmt.b32.rc16 %r1, %r2, %r3, %r4;",
            ],
            "differential, arithmetic",
        ),
        (
            "add, sub, mul, fma, mad, div, rcp, sqrt",
            ".f32 with .rn .rz .rm .rp .ftz .sat .approx .full; .f64 with .rn .rz .rm .rp",
            &[
                "add.rm.ftz.sat.f32 %f1, %f2, %f3;",
                "div.rp.f64 %fd1, %fd2, %fd3;",
                "rcp.approx.ftz.f64 %fd1, %fd2;",
                "sqrt.rz.f32 %f1, %f2;",
                "fma.rm.f64 %fd1, %fd2, %fd3, %fd4;",
            ],
            "differential, roundings",
        ),
        (
            "min, max, neg, abs, copysign, testp",
            ".f32, .f64; .NaN",
            &["max.NaN.ftz.f32 %f1, %f2, %f3;", "testp.subnormal.f64 %p1, %fd1;"],
            "differential, arithmetic",
        ),
        (
            "rsqrt, sin, cos, lg2, ex2, tanh",
            ".approx, which here is exact to within a rounding",
            &[
                "rsqrt.approx.f64 %fd1, %fd2;",
                "tanh.approx.bf16x2 %r1, %r2;",
                "ex2.approx.ftz.f16 %rs1, %rs2;",
            ],
            "arithmetic, corpus_linear, corpus_matrix",
        ),
        (
            "add, sub, mul, fma, min, max, neg, abs",
            ".f16 .f16x2 .bf16 .bf16x2 with .rn .ftz .sat .relu .NaN",
            &[
                "fma.rn.ftz.sat.f16x2 %r1, %r2, %r3, %r4;",
                "fma.rn.relu.bf16 %rs1, %rs2, %rs3, %rs4;",
                "min.NaN.bf16x2 %r1, %r2, %r3;",
            ],
            "roundings, corpus_calls",
        ),
        (
            "cvt",
            "between all integers, .f16 .bf16 .f32 .f64 with every rounding, .ftz .sat; pairs from .f32; .tf32; .e4m3x2 and .e5m2x2 with .f32 and .f16x2",
            &[
                "cvt.rp.f16.f64 %rs1, %fd1;",
                "cvt.rn.bf16.s64 %rs1, %rd1;",
                "cvt.rni.sat.u8.f16 %rs1, %rs2;",
                "cvt.rn.relu.bf16x2.f32 %r1, %f1, %f2;",
                "cvt.rna.tf32.f32 %r1, %f1;",
                "cvt.rn.satfinite.e4m3x2.f32 %rs1, %f1, %f2;",
                "cvt.rn.f16x2.e5m2x2 %r1, %rs1;",
            ],
            "differential, roundings, arithmetic",
        ),
        (
            "setp, set, selp, slct",
            "all comparisons, ordered and unordered, with .and .or .xor; halves and pairs of them",
            &[
                "setp.geu.xor.ftz.f32 %p1|%p2, %f1, %f2, !%p3;",
                "setp.lt.bf16x2 %p1|%p2, %r1, %r2;",
                "set.ne.f16x2.f16x2 %r1, %r2, %r3;",
                "slct.f64.s32 %fd1, %fd2, %fd3, %r1;",
            ],
            "differential, arithmetic",
        ),
        (
            "mov",
            "vectors packed and unpacked; addresses of variables and functions; special registers; grids that meet, by %envreg1 and %envreg2",
            &[
                "mov.u32 %r1, %envreg2;",
                "mov.b64 {%rs1, %rs2, %rs3, %rs4}, %rd1;",
                "mov.b32 %r1, {%rs1, %rs2};",
                "mov.u64 %rd1, %globaltimer;",
                "mov.u32 %r1, %total_smem_size;",
                "mov.u32 %r1, %cluster_nctaid.x;",
            ],
            "arithmetic, functions",
        ),
        (
            "ld, st, ldu",
            "all state spaces; .v2 .v4 .v8; .volatile .relaxed .acquire .release .mmio with scopes; .nc and cache hints",
            &[
                "ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];",
                "ld.acquire.gpu.global.u32 %r1, [%rd1+4];",
                "st.global.v8.b32 [%rd1], {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8};",
                "st.release.sys.global.u64 [%rd1], %rd2;",
                "ld.param::entry.u64 %rd1, [out];",
            ],
            "memory, corpus_linear, corpus_calls",
        ),
        (
            "cvta, isspacep, prefetch",
            ".shared .local .global .const .param",
            &[
                "cvta.to.param.u64 %rd1, %rd2;",
                "isspacep.local %p1, %rd1;",
                "prefetch.global.L2 [%rd1];",
            ],
            "memory",
        ),
        (
            "atom, red",
            "global, shared and generic; add min max and or xor exch cas inc dec; .b16 (cas), 32 and 64 bits, .b128 (exch, cas), .f32 .f64 .f16 .f16x2 .bf16 .bf16x2; of global memory .v2 .v4 .v8 of floats up to 32 bits",
            &[
                "atom.acq_rel.gpu.global.cas.b16 %rs1, [%rd1], %rs2, %rs3;",
                "red.shared.add.f64 [%rd1], %fd1;",
                "atom.add.noftz.bf16x2 %r1, [%rd1], %r2;",
                "atom.global.min.s64 %rd1, [%rd2], %rd3;",
                "{ .reg .b128 %q<4>; atom.acquire.cta.shared.cas.b128 %q1, [%r1], %q2, %q3; }",
                "{ .reg .b128 d, b; atom.exch.b128 d, [%rd1], b; mov.b128 {%rd2, %rd3}, d; }",
                "atom.global.add.L2::cache_hint.v4.f32 {%f1, _, %f3, %f4}, [%rd1], {%f5, %f6, %f7, %f8}, %rd2;",
                "red.release.gpu.global.max.noftz.v8.bf16 [%rd1], {%rs1, %rs2, %rs3, %rs4, %rs5, %rs6, %rs7, %rs8};",
                "red.global.min.noftz.v2.f16x2 [%rd1], {%r1, %r2};",
            ],
            "memory, atomics, corpus_calls, corpus_grid",
        ),
        (
            "cp.async",
            ".ca .cg, commit_group, wait_group, wait_all: the copy is done when it is asked for",
            &[
                "cp.async.ca.shared.global.L2::128B [%r1], [%rd1], 8, %r2;",
                "cp.async.commit_group;",
                "cp.async.wait_group 1;",
            ],
            "memory, corpus_linear",
        ),
        (
            "bra, brx.idx, call, ret, exit, trap",
            "device functions with parameters of any size, function pointers, tables; vprintf and __assertfail",
            &["L: bra.uni L;", "{ A: B: .branchtargets A, B2; B2: brx.idx %r1, B; }"],
            "divergence, functions, corpus_calls",
        ),
        (
            "bar, barrier, membar, fence",
            ".sync .arrive .red, with a number of threads",
            &[
                "barrier.cta.red.aligned.or.pred %p1, 2, 64, %p2;",
                "bar.arrive 3, 96;",
                "fence.acq_rel.sys;",
                "membar.gl;",
                "fence.proxy.async;",
            ],
            "divergence",
        ),
        (
            "shfl.sync, vote.sync, match.sync, redux.sync, elect.sync, activemask, bar.warp.sync",
            "all modes",
            &[
                "shfl.sync.bfly.b32 %r1|%p1, %r2, %r3, %r4, %r5;",
                "match.all.sync.b64 %r1|%p1, %rd1, -1;",
                "redux.sync.xor.b32 %r1, %r2, -1;",
                "elect.sync %r1|%p1, -1;",
                "vote.sync.uni.pred %p1, %p2, -1;",
            ],
            "divergence, corpus_linear",
        ),
        ("nanosleep", "a millisecond at most, as on GPUs", &["nanosleep.u32 %r1;"], "arithmetic"),
    ];

    /// What is refused, an example, and a part of the message.
    const REFUSED: &[(&str, &str, &str)] = &[
        (
            "textures and surfaces",
            "suld.b.1d.b32.trap %r1, [%rd1];",
            "unknown instruction 'suld.b.1d.b32.trap'",
        ),
        (
            "matrix instructions (mma, wmma, wgmma, tcgen05, ldmatrix)",
            "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1}, [%rd1];",
            "unknown instruction 'wmma",
        ),
        (
            "clusters (mapa, barrier.cluster, distributed shared memory)",
            "barrier.cluster.arrive;",
            "unknown instruction 'barrier.cluster.arrive'",
        ),
        ("bulk and tensor copies", "cp.async.bulk.commit_group;", "without '.bulk'"),
        ("mbarrier", "mbarrier.init.shared.b64 [%r1], 1;", "unknown instruction 'mbarrier"),
        (
            "video instructions",
            "vadd4.u32.u32.u32 %r1, %r2, %r3, %r4;",
            "unknown instruction 'vadd4",
        ),
        (
            "loads and stores of 128 bits as one",
            "{ .reg .b128 q; ld.relaxed.gpu.global.b128 q, [%rd1]; }",
            "a known type is missing",
        ),
        (
            "warp instructions without .sync",
            "shfl.down.b32 %r1, %r1, 1, 31;",
            "only the '.sync' form",
        ),
        ("isspacep.const", "isspacep.const %p1, %rd1;", "not supported"),
        (
            "functions of the device runtime (malloc, launches from kernels)",
            "call.uni malloc;",
            "'malloc' is not a function",
        ),
    ];

    fn table() -> String {
        let mut text = String::from("| instructions | forms | proven by |\n| --- | --- | --- |\n");
        for (names, forms, _, proof) in SUPPORTED {
            let proof = proof.split(", ").map(|module| format!("`{module}`"));
            let _ =
                writeln!(text, "| {names} | {forms} | {} |", proof.collect::<Vec<_>>().join(", "));
        }
        text.push_str("\n| refused | example |\n| --- | --- |\n");
        for (what, example, _) in REFUSED {
            let _ = writeln!(text, "| {what} | `{}` |", example.trim_end_matches(';'));
        }
        text
    }

    #[test]
    fn every_example_is_understood() {
        for (_, _, examples, _) in SUPPORTED {
            for example in *examples {
                let parsed = Module::parse(&program(example));
                assert!(parsed.is_ok(), "{example}: {}", parsed.expect_err("an error"));
            }
        }
    }

    #[test]
    fn what_is_refused_is_named_with_its_line() {
        for (_, example, part) in REFUSED {
            let error = Module::parse(&program(example)).expect_err("a refusal");
            assert!(error.message.contains(part), "{example}: {error}");
            assert_eq!(error.line, 9, "{example}: {error}");
        }
    }

    #[test]
    fn the_modules_that_prove_a_line_exist() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine");
        for (names, _, _, proof) in SUPPORTED {
            for module in proof.split(", ") {
                assert!(folder.join(format!("{module}.rs")).exists(), "{names}: {module}");
            }
        }
    }

    /// Writes the table instead when `GPUZONE_WRITE_DOCS` is set.
    #[test]
    fn the_page_has_the_table() {
        const MARKS: [&str; 2] = ["<!-- table of instructions -->\n", "<!-- end of table -->\n"];
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/simulated-gpu.md");
        let text = std::fs::read_to_string(&page).expect("the page");
        let (before, rest) = text.split_once(MARKS[0]).expect("the first mark");
        let (old, after) = rest.split_once(MARKS[1]).expect("the second mark");
        if std::env::var_os("GPUZONE_WRITE_DOCS").is_some() {
            let new = [before, MARKS[0], &table(), MARKS[1], after].concat();
            std::fs::write(&page, new).expect("the page is written");
            return;
        }
        assert!(
            old == table(),
            "run `GPUZONE_WRITE_DOCS=1 cargo test -p gpuzone-sim-ptx the_page`"
        );
    }
}
