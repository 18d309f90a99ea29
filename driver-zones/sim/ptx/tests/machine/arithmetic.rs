//! Instructions one by one, with values known from the PTX manual or from Rust.

#[cfg(test)]
mod tests {
    use crate::common::results;

    /// The first lane's result.
    fn one(body: &str) -> u32 {
        results(body, 32)[0]
    }

    fn float(body: &str) -> f32 {
        f32::from_bits(one(&format!("{body} mov.b32 %r1, %f1;")))
    }

    #[test]
    fn integers() {
        assert_eq!(one("mul.hi.u32 %r1, -1, -1;"), 0xffff_fffe);
        assert_eq!(one("mul.hi.s32 %r1, -2, 3;"), u32::MAX);
        assert_eq!(one("mad.lo.s32 %r1, -2, 3, 10;"), 4);
        assert_eq!(one("mad.hi.u32 %r1, -1, 2, 10;"), 11);
        assert_eq!(one("div.s32 %r1, -7, 2;").cast_signed(), -3);
        assert_eq!(one("rem.s32 %r1, -7, 2;").cast_signed(), -1);
        assert_eq!(one("div.u32 %r1, 5, 0;"), u32::MAX);
        assert_eq!(one("div.s32 %r1, 0x80000000, -1;"), 0x8000_0000);
        assert_eq!(one("shl.b32 %r1, 1, 32;"), 0);
        assert_eq!(one("shr.s32 %r1, -8, 100;"), u32::MAX);
        assert_eq!(one("add.sat.s32 %r1, 0x7fffffff, 1;"), 0x7fff_ffff);
        assert_eq!(one("abs.s32 %r1, -5; sad.s32 %r1, %r1, -5, 1;"), 11);
        assert_eq!(one("bfe.s32 %r1, 0xf0, 4, 4;"), u32::MAX);
        assert_eq!(one("bfi.b32 %r1, 5, 0, 8, 4;"), 0x500);
        assert_eq!(one("brev.b32 %r1, 1;"), 1 << 31);
        assert_eq!(one("lop3.b32 %r1, 12, 10, 6, 0xe8;"), 14);
        assert_eq!(one("shf.l.wrap.b32 %r1, 0x80000000, 1, 33;"), 3);
        assert_eq!(one("mul24.lo.s32 %r1, 0xffffff, 2;").cast_signed(), -2);
    }

    #[test]
    fn sixteen_and_sixty_four_bits() {
        assert_eq!(one("mov.u16 %rs1, 65535; add.u16 %rs1, %rs1, 2; cvt.u32.u16 %r1, %rs1;"), 1);
        assert_eq!(one("mov.b16 %rs1, -3; abs.s16 %rs1, %rs1; cvt.u32.u16 %r1, %rs1;"), 3);
        assert_eq!(one("mov.b16 %rs1, -3; mul.wide.s16 %r1, %rs1, 5;").cast_signed(), -15);
        assert_eq!(one("mov.b16 %rs1, -3; setp.lt.s16 %p1, %rs1, 0; selp.b32 %r1, 1, 0, %p1;"), 1);
        assert_eq!(
            one("mov.b64 %rd1, {3, 4}; mul.lo.s64 %rd1, %rd1, 5; mov.b64 {%r2, %r1}, %rd1;"),
            20
        );
        assert_eq!(one("mul.hi.u64 %rd1, -1, -1; cvt.u32.u64 %r1, %rd1;"), 0xffff_fffe);
        assert_eq!(one("shr.s64 %rd1, -16, 2; cvt.u32.u64 %r1, %rd1;").cast_signed(), -4);
        assert_eq!(one("clz.b64 %r1, 1;"), 63);
        assert_eq!(one("mad.wide.s32 %rd1, -2, 3, 10; cvt.u32.u64 %r1, %rd1;"), 4);
        // (2^32 - 1) + 1 carries into the high word; the carry is then taken back.
        assert_eq!(one("add.cc.u32 %r2, -1, 1; addc.u32 %r1, 5, 0;"), 6);
        assert_eq!(one("sub.cc.u32 %r2, 0, 1; subc.u32 %r1, 5, 0;"), 4);
    }

    #[test]
    fn floats() {
        assert_eq!(float("add.rz.f32 %f1, 0f3F800000, 0f33000000;"), 1.0);
        assert_eq!(float("add.rp.f32 %f1, 0f3F800000, 0f33000000;"), 1.0_f32.next_up());
        assert_eq!(float("fma.rn.f32 %f1, 0f40000000, 0f40400000, 0f3F800000;"), 7.0);
        assert_eq!(float("mul.sat.f32 %f1, 0f40000000, 0f40400000;"), 1.0);
        assert_eq!(float("mul.ftz.f32 %f1, 0f00000001, 0f40400000;").to_bits(), 0);
        assert_eq!(float("mul.f32 %f1, 0f00000001, 0f40400000;").to_bits(), 3);
        assert_eq!(float("sub.f32 %f1, 0f7F800000, 0f7F800000;").to_bits(), 0x7fff_ffff);
        assert_eq!(float("div.full.f32 %f1, 0f3F800000, 0f40400000;"), 1.0 / 3.0);
        assert_eq!(float("sqrt.rn.f32 %f1, 0f40000000;"), 2.0_f32.sqrt());
        assert_eq!(float("rsqrt.approx.f32 %f1, 0f40800000;"), 0.5);
        assert_eq!(float("ex2.approx.f32 %f1, 0f40400000;"), 8.0);
        assert_eq!(float("lg2.approx.f32 %f1, 0f41000000;"), 3.0);
        assert_eq!(float("min.f32 %f1, 0f7FC00000, 0f40400000;"), 3.0);
        assert!(float("max.NaN.f32 %f1, 0f7FC00000, 0f40400000;").is_nan());
        assert_eq!(float("copysign.f32 %f1, 0fBF800000, 0f40400000;"), -3.0);
        assert_eq!(float("mov.f32 %f1, 0fC0400000; abs.f32 %f1, %f1;"), 3.0);
        assert_eq!(float("cvt.rn.f32.f64 %f1, 0d3FF8000000000000;"), 1.5);
        assert_eq!(
            float(
                "fma.rn.f64 %fd1, 0d4000000000000000, 0d4000000000000000, 0d3FF0000000000000; cvt.rn.f32.f64 %f1, %fd1;"
            ),
            5.0
        );
    }

    #[test]
    fn conversions() {
        assert_eq!(one("cvt.rzi.s32.f32 %r1, 0fC0200000;").cast_signed(), -2);
        assert_eq!(one("cvt.rni.s32.f32 %r1, 0f40200000;"), 2);
        assert_eq!(one("cvt.s32.s8 %r1, 200;").cast_signed(), -56);
        assert_eq!(one("cvt.u8.u32 %rs1, 0x1ff; cvt.u32.u16 %r1, %rs1;"), 255);
        assert_eq!(one("cvt.sat.u8.s32 %r1, -9;"), 0);
        assert_eq!(float("cvt.rn.f32.s32 %f1, -7;"), -7.0);
        assert_eq!(float("cvt.rn.f16.f32 %rs1, 0f3FC00000; cvt.f32.f16 %f1, %rs1;"), 1.5);
        assert_eq!(float("cvt.sat.f32.f32 %f1, 0f7FC00000;"), 0.0);
        assert_eq!(float("cvt.rpi.f32.f32 %f1, 0f3FC00000;"), 2.0);
    }

    #[test]
    fn less_usual_integer_instructions() {
        assert_eq!(one("mad.lo.cc.u32 %r2, -1, 2, 3; madc.hi.u32 %r1, -1, 2, 10;"), 12);
        assert_eq!(one("dp2a.lo.u32.u32 %r1, 0x10002, 0x4030201, 5;"), 9);
        assert_eq!(one("dp4a.u32.s32 %r1, 0x01010101, 0xff020304, 1;"), 9);
        assert_eq!(one("mad24.lo.u32 %r1, 3, 4, 5;"), 17);
        assert_eq!(one("bmsk.clamp.b32 %r1, 4, 8;"), 0xff0);
        assert_eq!(one("szext.wrap.s32 %r1, 0x80, 8;"), 0xffff_ff80);
        assert_eq!(one("fns.b32 %r1, 0xb0, 4, 2;"), 5);
        assert_eq!(one("max.s16x2 %r1, 0xffff0003, 0x0001fffe;"), 0x0001_0003);
        assert_eq!(one("add.u16x2 %r1, 0xffffffff, 0x00010001;"), 0);
        assert_eq!(one("min.relu.s32 %r1, -5, 3;"), 0);
        assert_eq!(one("cnot.b32 %r1, 0;"), 1);
    }

    #[test]
    fn conversions_to_pairs_and_small_formats() {
        assert_eq!(one("cvt.rn.f16x2.f32 %r1, 0f3F800000, 0f40000000;"), 0x3c00_4000);
        assert_eq!(one("cvt.rn.relu.bf16x2.f32 %r1, 0fBF800000, 0f40000000;"), 0x4000);
        assert_eq!(one("cvt.rna.tf32.f32 %r1, 0f3F801000;"), 0x3f80_2000);
        let bytes = "cvt.rn.satfinite.e4m3x2.f32 %rs1, 0f44800000, 0f3F800000;";
        assert_eq!(one(&format!("{bytes} cvt.u32.u16 %r1, %rs1;")), 0x7e38);
        assert_eq!(one("mov.b16 %rs1, 0x7e38; cvt.rn.f16x2.e4m3x2 %r1, %rs1;"), 0x5f00_3c00);
        let bytes = "cvt.rn.satfinite.e5m2x2.f32 %rs1, 0fC0000000, 0f3FC00000;";
        assert_eq!(one(&format!("{bytes} cvt.u32.u16 %r1, %rs1;")), 0xc03e);
        assert_eq!(one("cvt.rn.bf16.f32 %rs1, 0f3F808000; cvt.u32.u16 %r1, %rs1;"), 0x3f80);
        assert_eq!(float("mov.b16 %rs1, 0x3fc0; cvt.f32.bf16 %f1, %rs1;"), 1.5);
    }

    #[test]
    fn halves_are_compared_and_given_functions() {
        let pairs = "mov.b32 %r2, 0x3c004000; mov.b32 %r3, 0x40003c00;";
        let compared = "setp.lt.f16x2 %p1|%p2, %r2, %r3; selp.u32 %r1, 1, 0, %p1;";
        assert_eq!(one(&format!("{pairs} {compared} @%p2 add.u32 %r1, %r1, 2;")), 2);
        assert_eq!(one(&format!("{pairs} set.lt.f16x2.f16x2 %r1, %r2, %r3;")), 0x3c00_0000);
        assert_eq!(one(&format!("{pairs} set.lt.u32.f16x2 %r1, %r2, %r3;")), 0xffff_0000);
        let half = |body: &str| one(&format!("{body} cvt.u32.u16 %r1, %rs1;"));
        assert_eq!(half("mov.b16 %rs2, 0x4200; ex2.approx.f16 %rs1, %rs2;"), 0x4800);
        assert_eq!(half("mov.b16 %rs2, 0x7f80; tanh.approx.bf16 %rs1, %rs2;"), 0x3f80);
        let operands = "mov.b16 %rs2, 0x7e00; mov.b16 %rs3, 0x3c00;";
        assert_eq!(half(&format!("{operands} min.f16 %rs1, %rs2, %rs3;")), 0x3c00);
        assert_eq!(half(&format!("{operands} min.NaN.f16 %rs1, %rs2, %rs3;")), 0x7fff);
        // The smallest half is flushed, or it is not.
        assert_eq!(half("mov.b16 %rs2, 1; abs.ftz.f16 %rs1, %rs2;"), 0);
        let below = "mov.b16 %rs2, 1; mov.b16 %rs3, 2; setp.lt.f16 %p1, %rs2, %rs3;";
        assert_eq!(one(&format!("{below} selp.u32 %r1, 1, 0, %p1;")), 1);
        let below = below.replace("setp.lt.f16", "setp.lt.ftz.f16");
        assert_eq!(one(&format!("{below} selp.u32 %r1, 1, 0, %p1;")), 0);
    }

    #[test]
    fn comparisons_with_two_results_and_a_third_operand() {
        let body = "setp.lt.u32 %p1, %r0, 3; setp.gt.and.s32 %p2|%p3, %r0, 0, %p1;
            selp.u32 %r1, 1, 0, %p2; @%p3 add.u32 %r1, %r1, 2; set.eq.u32.u32 %r2, %r0, 5;
            @%p1 setp.eq.u32 %p1|%p4, %r0, 2; sub.u32 %r1, %r1, %r2; @%p1 add.u32 %r1, %r1, 4;";
        assert_eq!(results(body, 7), [2, 1, 5, 0, 0, 1, 0]);
        assert_eq!(
            one("setp.ltu.f32 %p1, 0f7FC00000, 0f0; selp.u32 %r1, 1, 0, %p1;"
                .replace("0f0;", "0f00000000;")
                .as_str()),
            1
        );
        assert_eq!(one("testp.notanumber.f32 %p1, 0f7FC00000; selp.u32 %r1, 1, 0, %p1;"), 1);
        assert_eq!(one("slct.u32.f32 %r1, 7, 8, 0fBF800000;"), 8);
    }

    #[test]
    fn scopes_have_registers_and_labels_of_their_own() {
        let body = "mov.u32 %r1, 1; { .reg .b32 %r1, t<3>; mov.u32 %r1, 50; mov.u32 t2, %r1; bra L; mov.u32 t2, 0; L: add.u32 %r2, t2, 1; }
            { .reg .b32 t; mov.u32 t, %r2; bra L; mov.u32 t, 0; L: add.u32 %r1, %r1, t; }";
        assert_eq!(one(body), 52);
    }

    #[test]
    fn special_registers() {
        let body = "mov.u32 %r2, %ntid.x; mov.u32 %r3, %laneid; mov.u32 %r4, %warpid;
            mov.u32 %r5, %lanemask_lt; popc.b32 %r5, %r5; sub.u32 %r5, %r5, %r3;
            mad.lo.u32 %r1, %r4, WARP_SZ, %r3; add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r5;
            mov.u64 %rd1, %clock64; mov.u64 %rd2, %clock64; setp.lt.u64 %p1, %rd2, %rd1; @%p1 trap;";
        assert_eq!(results(body, 70), (70..140).collect::<Vec<u32>>());
    }

    #[test]
    fn a_sleep_takes_its_time() {
        let body = "mov.u64 %rd1, %clock64; nanosleep.u32 100000; nanosleep.u32 0;
            mov.u64 %rd2, %clock64; sub.s64 %rd2, %rd2, %rd1;
            setp.lt.u64 %p1, %rd2, 100000; @%p1 trap; mov.u32 %r1, 7;";
        assert_eq!(one(body), 7);
    }
}
