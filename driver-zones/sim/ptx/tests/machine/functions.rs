//! Device functions: calls, pointers, arguments, and what kernels print.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Run, TestMemory};
    use gpuzone_sim_ptx::{Fault, Module, PrintBuffer};

    /// A module of some functions, and a kernel of `body` whose thread is in `%r0`
    /// and whose result is `%r1`.
    fn module(functions: &str, body: &str) -> String {
        format!(
            ".version 8.0\n.target sm_75\n.address_size 64\n{functions}\n\
             .visible .entry k(.param .u64 out) {{\n\
             .reg .pred %p<5>; .reg .b32 %r<10>; .reg .b64 %rd<10>;\n\
             ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x;\n{body}\n\
             mul.wide.u32 %rd9, %r0, 4; add.s64 %rd9, %rd0, %rd9; st.global.u32 [%rd9], %r1; ret; }}"
        )
    }

    fn run(source: &str, globals: &[u64]) -> Result<Vec<u32>, Fault> {
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 32]);
        let run = Run { budget: 1_000_000, globals, ..Run::default() };
        run.go(source, "k", &[Arg::U64(out)], &memory)?;
        Ok(memory.words(out))
    }

    const TRIPLE: &str = ".func (.param .b32 result) triple(.param .b32 x) {\n\
        .reg .b32 %r<4>; ld.param.u32 %r1, [x]; mul.lo.u32 %r2, %r1, 3;\n\
        st.param.b32 [result+0], %r2; ret; }\n";

    /// Calls `function` with `%r0` and adds its result to `%r1`.
    fn call(function: &str) -> String {
        format!(
            "{{ .param .b32 a; st.param.b32 [a+0], %r0; .param .b32 b; call.uni (b), {function}, (a);\n\
             ld.param.b32 %r2, [b+0]; add.u32 %r1, %r1, %r2; }}\n"
        )
    }

    #[test]
    fn diverged_lanes_call_and_come_back() {
        let body = format!(
            "mov.u32 %r1, 100; setp.lt.u32 %p1, %r0, 7; @%p1 bra L;\n{}{}L: add.u32 %r1, %r1, 1;",
            call("triple"),
            call("triple")
        );
        let expected: Vec<u32> = (0..32).map(|i| if i < 7 { 101 } else { 101 + 6 * i }).collect();
        assert_eq!(run(&module(TRIPLE, &body), &[]), Ok(expected));
    }

    #[test]
    fn functions_call_functions_that_come_later_in_the_text() {
        let outer = format!(
            ".func (.param .b32 result) outer(.param .b32 x);\n\
             .func (.param .b32 result) outer(.param .b32 x) {{ .reg .b32 %r<4>; .reg .pred %p<2>;\n\
             ld.param.u32 %r0, [x]; mov.u32 %r1, 5; setp.gt.u32 %p1, %r0, 20; @%p1 bra END;\n{}\
             END: st.param.b32 [result], %r1; }}\n{TRIPLE}",
            call("triple")
        );
        let body = format!("mov.u32 %r1, 0;\n{}", call("outer"));
        let expected: Vec<u32> = (0..32).map(|i| if i > 20 { 5 } else { 5 + 3 * i }).collect();
        assert_eq!(run(&module(&outer, &body), &[]), Ok(expected));
    }

    #[test]
    fn lanes_call_different_functions_through_a_table() {
        let functions = format!(
            "{TRIPLE}.func (.param .b32 result) negate(.param .b32 x) {{ .reg .b32 %r<4>;\n\
             ld.param.u32 %r1, [x]; neg.s32 %r2, %r1; st.param.b32 [result+0], %r2; ret; }}\n\
             .global .u64 table[2] = {{triple, negate}};"
        );
        let body = "mov.u32 %r1, 0; and.b32 %r3, %r0, 1; mul.wide.u32 %rd1, %r3, 8;\n\
            mov.u64 %rd2, table; add.u64 %rd1, %rd1, %rd2; ld.global.u64 %rd3, [%rd1];\n\
            { .param .b32 a; st.param.b32 [a+0], %r0; .param .b32 b;\n\
            P: .callprototype (.param .b32 _) _ (.param .b32 _); call (b), %rd3, (a), P;\n\
            ld.param.b32 %r1, [b+0]; }";
        let source = module(&functions, body);
        let mut memory = TestMemory::default();
        let parsed = Module::parse(&source).expect("valid PTX");
        let initial = parsed.initial_value(0, &[0]).expect("a value");
        let (out, table) = (memory.add_words(&[0; 32]), memory.add(&initial));
        let run = Run { globals: &[table], ..Run::default() };
        run.go(&source, "k", &[Arg::U64(out)], &memory).expect("no fault");
        let expected: Vec<u32> =
            (0..32_u32).map(|i| if i % 2 == 0 { 3 * i } else { i.wrapping_neg() }).collect();
        assert_eq!(memory.words(out), expected);
        // A pointer to nothing of ours.
        let wrong = source.replace("ld.global.u64 %rd3, [%rd1];", "mov.u64 %rd3, 4096;");
        let fault = run.go(&wrong, "k", &[Arg::U64(out)], &memory);
        assert!(matches!(fault, Err(Fault::InvalidProgram(_))), "{fault:?}");
    }

    #[test]
    fn recursion_is_refused_by_name_and_line() {
        let functions = ".func a();\n.func b() { call a; }\n.func a() {\ncall b; }";
        let error = Module::parse(&module(functions, "mov.u32 %r1, 0; call a;"));
        let error = error.expect_err("a refusal").to_string();
        assert!(error.contains("recursion is not supported"), "{error}");
        // Nobody calls it: nothing is wrong.
        assert!(Module::parse(&module(functions, "mov.u32 %r1, 0;")).is_ok());
        // Through a pointer it shows only when it happens.
        let functions =
            ".global .u64 p = a;\n.func a() { .reg .b64 %rd<3>; mov.u64 %rd1, a; call %rd1; ret; }";
        let mut memory = TestMemory::default();
        let place = memory.add(&[0; 8]);
        let source = module(functions, "mov.u32 %r1, 0; call a;");
        let out = memory.add_words(&[0; 32]);
        let fault = Run { globals: &[place], budget: 100_000, ..Run::default() }.go(
            &source,
            "k",
            &[Arg::U64(out)],
            &memory,
        );
        assert_eq!(fault, Err(Fault::InvalidProgram("a function calls itself through a pointer")));
    }

    #[test]
    fn functions_without_a_body_are_refused_where_they_are_called() {
        let functions = ".extern .func (.param .b64 r) malloc(.param .b64 size);";
        let body = "mov.u32 %r1, 0; { .param .b64 a; .param .b64 r; call (r), malloc, (a); }";
        let error = Module::parse(&module(functions, body)).expect_err("a refusal").to_string();
        assert!(error.contains("'malloc' has no body"), "{error}");
        assert!(Module::parse(&module(functions, "mov.u32 %r1, 0;")).is_ok());
    }

    #[test]
    fn many_callers_of_a_long_function_are_bounded() {
        let long = "add.u32 %r1, %r1, 1;\n".repeat(40_000);
        let kernels: String =
            (0..60).map(|i| format!(".entry k{i}() {{ call long; ret; }}\n")).collect();
        let source = format!(
            ".version 8.0\n.target sm_75\n.address_size 64\n.func long() {{ .reg .b32 %r<3>;\n{long} ret; }}\n{kernels}"
        );
        let error = Module::parse(&source).expect_err("a refusal");
        assert!(error.message.contains("more than 16 MiB"), "{error}");
    }

    #[test]
    fn module_variables_may_hold_addresses() {
        let source = ".version 8.0\n.target sm_75\n.address_size 64\n\
            .global .align 8 .u64 places[3] = {generic(x)+4, 7, y};\n.global .u32 x; .const .u32 y;\n\
            .global .align 8 .b8 parts[8] = {0xFF(x), 0xFF00(x), 0xFF0000(x), 9};";
        let module = Module::parse(source).expect("valid PTX");
        let addresses = [0, 0x0102_0304_0506_0708, 5, 0];
        let words = [0x0102_0304_0506_070c_u64, 7, 5].map(u64::to_le_bytes).concat();
        assert_eq!(module.initial_value(0, &addresses), Some(words));
        assert_eq!(module.initial_value(3, &addresses), Some(vec![8, 7, 6, 9]));
        assert_eq!(module.initial_value(0, &[]), None);
    }

    #[test]
    fn a_kernel_prints_and_an_assertion_names_its_thread() {
        let functions = ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);\n\
            .extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n\
            .global .align 1 .b8 text[8] = {37, 100, 45, 37, 115, 10, 0, 0};\n\
            .global .align 1 .b8 name[4] = {97, 98, 99, 0};";
        let print = "setp.ne.u32 %p1, %r0, 3; mov.u32 %r1, 9; @%p1 bra L;\n\
            { .local .align 8 .b8 values[16]; mov.u64 %rd1, values; st.local.u32 [values], -7;\n\
            mov.u64 %rd2, name; st.local.u64 [values+8], %rd2; cvta.local.u64 %rd1, %rd1;\n\
            .param .b64 a; .param .b64 b; .param .b32 r; mov.u64 %rd3, text;\n\
            st.param.b64 [a+0], %rd3; st.param.b64 [b+0], %rd1;\n\
            call.uni (r), vprintf, (a, b); ld.param.b32 %r1, [r+0]; } L:";
        let mut memory = TestMemory::default();
        let text = memory.add(b"%d-%s\n\0\0");
        let globals = [text, memory.add(b"abc\0")];
        let out = memory.add_words(&[0; 32]);
        let prints = PrintBuffer::new(1 << 10);
        let run = Run { globals: &globals, prints: &prints, grid: (2, 1), ..Run::default() };
        run.go(&module(functions, print), "k", &[Arg::U64(out)], &memory).expect("no fault");
        assert_eq!(prints.take(), (b"-7-abc\n-7-abc\n".to_vec(), 0));
        assert_eq!(memory.words(out)[2..5], [9, 2, 9]);

        let check = "mov.u32 %r1, 0; setp.ne.u32 %p1, %r0, 5; @%p1 bra L; mov.u64 %rd1, name;\n\
            { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;\n\
            st.param.b64 [a], %rd1; st.param.b64 [b], %rd1; st.param.b32 [c], 12;\n\
            st.param.b64 [d], %rd1; st.param.b64 [e], 1; call __assertfail, (a, b, c, d, e); } L:";
        let fault = run.go(&module(functions, check), "k", &[Arg::U64(out)], &memory);
        let Err(Fault::Assert(text)) = fault else { panic!("{fault:?}") };
        assert!(text.starts_with("abc:12: abc: block: ["), "{text}");
        assert!(text.ends_with("thread: [5,0,0] Assertion `abc` failed."), "{text}");
    }
}
