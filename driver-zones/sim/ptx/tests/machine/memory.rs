//! State spaces, atomics, and the faults of each.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Run, TestMemory, program, results};
    use gpuzone_sim_ptx::{Fault, Module};

    fn fault(body: &str) -> Fault {
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 32]);
        Run::default().go(&program(body), "k", &[Arg::U64(out)], &memory).expect_err("a fault")
    }

    #[test]
    fn generic_addresses_reach_every_space() {
        let body = "
            .shared .align 8 .b8 s[256]; .local .align 8 .b8 l[16];
            mov.u64 %rd1, s; cvta.shared.u64 %rd1, %rd1;
            mul.wide.u32 %rd2, %r0, 4; add.s64 %rd1, %rd1, %rd2; st.u32 [%rd1], %r0;
            mov.u64 %rd3, l; cvta.local.u64 %rd4, %rd3; st.u32 [%rd4+8], 5; ld.local.u32 %r2, [l+8];
            bar.sync 0; cvta.to.shared.u64 %rd5, %rd1; xor.b64 %rd5, %rd5, 4;
            ld.shared.u32 %r3, [%rd5]; add.u32 %r1, %r2, %r3;
            mov.b64 %rd6, out; cvta.param.u64 %rd6, %rd6; ld.u64 %rd7, [%rd6];
            setp.eq.u64 %p1, %rd7, %rd0; @%p1 add.u32 %r1, %r1, 100;
            isspacep.shared %p2, %rd1; @%p2 add.u32 %r1, %r1, 1000;
            isspacep.global %p3, %rd4; @!%p3 add.u32 %r1, %r1, 10000;";
        let expected: Vec<u32> = (0..32).map(|i: u32| 11105 + (i ^ 1)).collect();
        assert_eq!(results(body, 32), expected);
    }

    #[test]
    fn vectors_and_narrow_elements() {
        let body = "
            .shared .align 16 .b8 s[512]; shl.b32 %r2, %r0, 4; mov.u32 %r3, s; add.u32 %r2, %r2, %r3;
            st.shared.v4.u32 [%r2], {%r0, 0x8081, -1, 3}; ld.shared.v2.u32 {%r4, %r5}, [%r2+8];
            ld.shared.s8 %r6, [%r2+4]; ld.shared.u16 %rs1, [%r2+4]; ld.shared.s16 %rd1, [%r2+4];
            cvt.u32.u16 %r7, %rs1; cvt.u32.u64 %r8, %rd1; st.shared.u8 [%r2+12], %rs1;
            ld.shared.u32 %r9, [%r2+12];
            add.u32 %r1, %r4, %r5; add.u32 %r1, %r1, %r6; add.u32 %r1, %r1, %r7;
            add.u32 %r1, %r1, %r8; add.u32 %r1, %r1, %r9;";
        let sum = u32::MAX
            .wrapping_add(3)
            .wrapping_add(0xffff_ff81)
            .wrapping_add(0x8081)
            .wrapping_add(0xffff_8081)
            .wrapping_add(0x81);
        assert_eq!(results(body, 32), vec![sum; 32]);
    }

    #[test]
    fn eight_elements_at_once() {
        let body = "
            st.global.v8.b32 [%rd0], {9, 1, 2, 3, 4, 5, 6, 7};
            ld.global.v8.b32 {%r2, %r3, %r4, %r5, %r6, %r7, %r8, %r9}, [%rd0];
            mad.lo.u32 %r1, %r2, 10, %r9;";
        assert_eq!(results(body, 32), vec![97; 32]);
        assert!(matches!(
            fault("ld.global.v4.b64 {%rd1, %rd2, %rd3, %rd4}, [%rd0+16];"),
            Fault::MisalignedAddress { bytes: 32, .. }
        ));
    }

    #[test]
    fn copies_to_shared_memory_fill_with_zeros() {
        let body = "
            .shared .align 16 .b8 s[512]; shl.b32 %r2, %r0, 4; mov.u32 %r3, s; add.u32 %r2, %r2, %r3;
            mov.u32 %r4, 7; st.global.u32 [%rd0+4], %r4; mov.u32 %r5, 4;
            cp.async.ca.shared.global [%r2], [%rd0], 8; cp.async.wait_all;
            ld.shared.u32 %r1, [%r2+4];
            cp.async.ca.shared.global [%r2], [%rd0], 8, %r5; cp.async.commit_group;
            cp.async.wait_group 0; ld.shared.u32 %r6, [%r2+4]; mad.lo.u32 %r1, %r6, 100, %r1;";
        assert_eq!(results(body, 32), vec![7; 32]);
        let wrong = body.replace("mov.u32 %r5, 4", "mov.u32 %r5, 9");
        assert!(matches!(fault(&wrong), Fault::InvalidProgram(_)));
        let outside = body.replace("shl.b32 %r2, %r0, 4", "shl.b32 %r2, %r0, 5");
        assert!(matches!(fault(&outside), Fault::IllegalAddress { write: true, .. }));
    }

    #[test]
    fn accesses_outside_are_faults_in_every_space() {
        let illegal = |body| matches!(fault(body), Fault::IllegalAddress { .. });
        assert!(illegal(".shared .b32 s[8]; ld.shared.u32 %r1, [s+32];"));
        assert!(illegal(".local .b8 l[16]; ld.local.u32 %r1, [l+16];"));
        assert!(illegal("ld.param.u32 %r1, [out+8];"));
        assert!(illegal("mov.u64 %rd1, -4; ld.u32 %r1, [%rd1];"));
        assert!(illegal("mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1];"));
        assert!(illegal("mov.u32 %r1, 0; st.global.v4.u32 [%rd0+128], {%r1,%r1,%r1,%r1};"));
        assert!(illegal("atom.global.add.u32 %r1, [%rd0+-4], 1;"));
        assert_eq!(
            fault("ld.global.v2.u32 {%r1, %r2}, [%rd0+4];"),
            Fault::MisalignedAddress { address: crate::common::FIRST_ADDRESS + 4, bytes: 8 }
        );
        assert!(matches!(
            fault(".shared .b32 s[8]; ld.shared.u32 %r1, [s+2];"),
            Fault::MisalignedAddress { .. }
        ));
    }

    #[test]
    fn atomics_of_many_blocks_add_up() {
        let body = "
            atom.global.add.u32 %r2, [%rd0+128], 1; red.global.max.s32 [%rd0+132], %r0;
            atom.global.inc.u32 %r2, [%rd0+136], 9; cvt.rn.f32.u32 %f1, 1;
            red.global.add.f32 [%rd0+140], %f1; red.global.add.u64 [%rd0+144], 3;
            L: ld.global.u32 %r3, [%rd0+152]; add.u32 %r4, %r3, 1;
            atom.global.cas.b32 %r5, [%rd0+152], %r3, %r4; setp.ne.u32 %p1, %r5, %r3; @%p1 bra L;
            mov.u32 %r1, 0;";
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 40]);
        let run = Run { grid: (100, 1), threads: 2, ..Run::default() };
        run.go(&program(body), "k", &[Arg::U64(out)], &memory).expect("no fault");
        let words = memory.words(out);
        assert_eq!(words[32..36], [3200, 31, 0, 3200.0_f32.to_bits()]);
        assert_eq!(words[36..39], [9600, 0, 3200]);
    }

    #[test]
    fn module_variables_have_addresses_and_initial_values() {
        let source = ".version 8.0\n.target sm_90a\n.address_size 64\n\
            .const .align 4 .u32 table[4] = {1, 0x10, 3};\n.global .align 8 .f64 x = 0d3FF0000000000000;\n\
            .global .align 16 .b8 big[1099511627776];\n.global .u32 y;\n\
            .visible .entry k(.param .u64 out) { .reg .b32 %r<4>; .reg .b64 %rd<4>;\n\
            ld.param.u64 %rd0, [out]; ld.const.u32 %r1, [table+4]; mov.u64 %rd1, table;\n\
            ld.global.u32 %r2, [%rd1+8]; add.u32 %r1, %r1, %r2; st.global.u32 [%rd0], %r1; ret; }";
        let module = Module::parse(source).expect("valid PTX");
        assert_eq!(module.target_compute_capability(), (9, 0));
        let [table, x, big, y] = module.globals() else { panic!("four variables") };
        assert!(table.constant && table.size == 16 && table.align == 4);
        let bytes: Vec<u8> = [1_u32, 16, 3].iter().flat_map(|word| word.to_le_bytes()).collect();
        let initial = |index| module.initial_value(index, &[]);
        assert_eq!(initial(0), Some(bytes));
        assert_eq!(initial(1), Some(1.0_f64.to_le_bytes().to_vec()));
        assert_eq!((x.size, x.constant), (8, false));
        assert_eq!((big.size, big.align, initial(2)), (1 << 40, 16, None));
        assert_eq!((y.size, initial(3), initial(4)), (4, None, None));
        let mut memory = TestMemory::default();
        let (out, table) = (memory.add_words(&[0]), memory.add_words(&[1, 16, 3, 0]));
        let globals = [table, 0, 0, 0];
        let run = Run { block: (1, 1), globals: &globals, ..Run::default() };
        run.go(source, "k", &[Arg::U64(out)], &memory).expect("no fault");
        assert_eq!(memory.words(out), [19]);
    }

    #[test]
    fn launches_that_do_not_fit_are_refused() {
        let source = program("mov.u32 %r1, 0;");
        let memory = TestMemory::default();
        let refused = |run: Run<'_>, args: &[Arg]| {
            matches!(run.go(&source, "k", args, &memory), Err(Fault::InvalidLaunch(_)))
        };
        let arg = || [Arg::U64(0)];
        assert!(refused(Run { grid: (0, 1), ..Run::default() }, &arg()));
        assert!(refused(Run { block: (1025, 1), ..Run::default() }, &arg()));
        assert!(refused(Run { block: (0, 1), ..Run::default() }, &arg()));
        assert!(refused(Run { shared: u32::MAX, ..Run::default() }, &arg()));
        assert!(refused(Run::default(), &[]));
    }
}
