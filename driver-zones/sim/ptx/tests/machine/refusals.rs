//! What is not known is refused with its line; hostile text costs little.

#[cfg(test)]
mod tests {
    use crate::common::program;
    use gpuzone_sim_ptx::{Module, PtxError};

    fn refused(source: &str) -> PtxError {
        Module::parse(source).expect_err("a refusal")
    }

    /// The body's first line is line 9 of the program.
    fn body(body: &str) -> PtxError {
        refused(&program(body))
    }

    #[test]
    fn an_unknown_instruction_is_named_with_its_line() {
        let error = body("mov.u32 %r1, 0;\n\nfoo.bar.u32 %r1, %r2;");
        assert_eq!(error.line, 11);
        assert_eq!(error.to_string(), "line 11: unknown instruction 'foo.bar.u32'");
        let error = body("add.u32.fancy %r1, %r1, %r1;");
        assert_eq!(
            error.to_string(),
            "line 9: unknown instruction 'add.u32.fancy': its modifier '.fancy' is not supported"
        );
    }

    #[test]
    fn what_would_go_wrong_at_run_time_is_refused() {
        for (text, part) in [
            ("add.u32 %r1, %rd1, 1;", "register '%rd1' has 64 bits, not 32"),
            ("add.u32 %r1, %r99, 1;", "'%r99' is not declared"),
            ("add.u32 %r1, %r2;", "takes 3 operands, not 2"),
            ("add.rz.f16 %rs1, %rs1, %rs1;", "rounded to nearest only"),
            ("mul.relu.bf16 %rs1, %rs1, %rs1;", "this clamp does not exist"),
            ("div.f16 %rs1, %rs1, %rs1;", "supported for .f32 and .f64 only"),
            ("add.u16 %rs1, %rs1, 70000;", "does not fit 16 bits"),
            ("bra NOWHERE;", "label 'NOWHERE' is not declared"),
            ("@%r1 bra X; X:", "register '%r1' is not a predicate"),
            ("X: X:", "label 'X' is declared twice"),
            (".reg .b32 %r<5>;", "declared twice"),
            ("ld.global.u32 %r1, [%r2];", "cannot hold an address"),
            ("ld.shared.u32 %r1, [out];", "another state space"),
            ("st.param.u32 [out], %r1;", "cannot be written"),
            ("ld.global.v2.u32 %r1, [%rd1];", "another length"),
            ("ld.shared.v4.u64 {%rd1,%rd2,%rd3,%rd4}, [%rd1];", "at most 16 bytes"),
            (
                "ld.global.v8.u64 {%rd1,%rd2,%rd3,%rd4,%rd5,%rd6,%rd7,%rd8}, [%rd1];",
                "at most 32 bytes",
            ),
            ("call foo, (%r1);", "'%r1' is no variable of the parameter space"),
            ("call.uni (%r1), foo;", "'%r1' is no variable of the parameter space"),
            ("call foo;", "'foo' is not a function"),
            ("call %r1;", "'%r1' cannot hold an address"),
            ("call k;", "'k' is not a function"),
            ("add.u32 (%r1), %r1, %r1;", "with a list"),
            ("shfl.down.b32 %r1, %r1, 1, 31;", "only the '.sync' form"),
            ("cvt.f32.s32 %f1, %r1;", "rounding does not fit"),
            ("fma.ftz.f64 %fd1, %fd1, %fd1, %fd1;", "do not exist for .f64"),
            ("cvt.rna.f16.f32 %rs1, %f1;", "rounding does not fit"),
            ("cvt.rn.f16x2.f64 %r1, %fd1, %fd1;", "from two .f32 only"),
            ("cp.async.bulk.shared.global [%r1], [%rd1], 16;", "without '.bulk'"),
            ("cp.async.ca.shared.global [%r1], [%rd1], 5;", "4, 8 or 16 bytes"),
            (
                "tex.2d.v4.f32.f32 {%f1,%f2,%f3,%f4}, [%rd1, {%f1,%f2}];",
                "textures are not supported",
            ),
            ("suld.b.1d.b32.trap %r1, [%rd1];", "unknown instruction 'suld.b.1d.b32.trap'"),
            ("tcgen05.fence::before_thread_sync;", "unknown instruction 'tcgen05"),
            ("wgmma.fence.sync.aligned;", "unknown instruction 'wgmma"),
            ("mapa.u64 %rd1, %rd2, 1;", "unknown instruction 'mapa"),
            ("wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1}, [%rd1];", "unknown instruction"),
            ("bar.red.popc.s32 %r1, 0, %p1;", "does not exist for this type"),
            (".local .b8 x[600000];", "larger than 524288"),
            (".shared .b8 x[50000];", "larger than 49152"),
            ("mov.u32 %r1, 99999999999999999999999;", "is not a number that fits 64 bits"),
        ] {
            let error = body(text);
            assert!(error.message.contains(part), "{text}: {error}");
            assert_eq!(error.line, 9, "{text}: {error}");
        }
    }

    #[test]
    fn modules_that_make_no_sense_are_refused() {
        for source in [
            "",
            "hello",
            ".version 8.0",
            ".version 8.0 .target sm_75",
            ".version 8.0 .target gfx90 .address_size 64",
            ".version 8.0 .target sm_75 .address_size 32",
            ".version 8.0 .target sm_75 .entry k() { /* never closed",
            ".version 8.0 .target sm_75 .entry k() {",
            ".version 8.0 .target sm_75 .entry k() {} .entry k() {}",
            ".version 8.0 .target sm_75 .extern .global .u32 elsewhere;",
            ".version 8.0 .target sm_75 .global .u32 q; .global .u32 p = q;",
            ".version 8.0 .target sm_75 .shared .u32 q; .global .u64 p = q;",
            ".version 8.0 .target sm_75 .global .u32 q; .global .u8 p[2] = {0xff0(q)};",
            ".version 8.0 .target sm_75 .global .u32 q[4] = {{1, 2}, {3, 4}};",
            ".version 8.0 .target sm_75 .func f() {} .func f() {}",
            ".version 8.0 .target sm_75 .func f() ",
            ".version 8.0 .target sm_75 .func (.param .b32 f() {} ",
            ".version 8.0 .target sm_75 .global .u64 p = elsewhere;",
            ".version 8.0 .target sm_75 .global .u8 p[2] = {1, 2, 3};",
            ".version 8.0 .target sm_75 .global .attribute(.managed) .u32 m;",
            ".version 8.0 .target sm_75 .entry k() \"text\u{e9}\u{0}",
        ] {
            let known = source.ends_with(".target sm_75");
            assert_eq!(Module::parse(source).is_ok(), known, "{source}");
        }
    }

    #[test]
    fn debug_information_and_unused_functions_are_passed_over() {
        let source = ".version 9.0\n.target sm_75, debug\n.address_size 64\n\
            .extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);\n\
            .func helper(.param .b32 x) { .reg .b32 %r<2>; call.uni other, (); ret; }\n\
            .file 1 \"a.cu\"\n.section .debug_str { .b8 1, 2; L: .b64 3 }\n\
            .visible .entry k() .maxntid 64, 2 .minnctapersm 2 {\n.loc 1 2 3, function_name L, \
            inlined_at 1 2 3\n.pragma \"nounroll\"; ret; }";
        let module = Module::parse(source).expect("it is all harmless");
        assert_eq!(
            module.kernel("k").map(gpuzone_sim_ptx::Kernel::max_threads_per_block),
            Some(128)
        );
    }

    /// What took the square of a text's length, or of what it nests, would not end here, or have no stack.
    #[test]
    fn hostile_text_is_refused() {
        let huge = "1".repeat(3 << 20);
        let many = (0..50_000).map(|i| format!("mov.u32 %r1, {i};")).collect::<String>();
        for text in [
            "{".repeat(1 << 20),
            format!("mov.u32 %r1, {huge};"),
            format!("mov.u32 %r{huge}, 0;"),
            format!("add.{} %r1;", "x.".repeat(1 << 20)),
            format!("mov.b64 %rd1, {{{}}};", "%r1,".repeat(1 << 20)),
            ".reg .b32 %q<4294967295>; mov.u32 %q4294967295, 0;".to_owned(),
            format!("mov.u32 %r1, {}1;", "-".repeat(1 << 20)),
            many,
            "{}".repeat(1 << 20),
            (0..600_000).map(|i| format!("L{i}:")).collect(),
        ] {
            let error = body(&text);
            assert!(error.message.len() < 400, "{error}");
        }
        assert_eq!(refused(&" ".repeat(33 << 20)).message, "the text is larger than 32 MiB");
        assert!(
            Module::parse(&program(".reg .b32 %q<4294967295>; mov.u32 %q4294967294, 0;")).is_ok()
        );
    }
}
