//! Random programs of arithmetic, on the machine and by the reference.

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
    use proptest::sample::select;

    use crate::common::{Arg, Run, TestMemory, values};
    use crate::reference::{
        self as reference, BINARY, BITWISE, COMPARISONS, COUNTS, Double, Float, INTEGER, Int,
        Single, UNARY,
    };

    /// Registers of each width: `%h0` to `%h7`, `%w0`, `%d0`, and predicates.
    #[derive(Clone, Copy, Default)]
    struct State {
        h: [u64; 8],
        w: [u64; 8],
        d: [u64; 8],
        p: [bool; 4],
    }

    impl State {
        fn file(&mut self, width: u32) -> &mut [u64; 8] {
            match width {
                16 => &mut self.h,
                32 => &mut self.w,
                _ => &mut self.d,
            }
        }
    }

    fn register(width: u32, index: usize) -> String {
        let file = match width {
            16 => "h",
            32 => "w",
            _ => "d",
        };
        format!("%{file}{index}")
    }

    /// One instruction; the numbers are those of its registers, result first.
    #[derive(Clone, Debug)]
    enum Step {
        Integer(&'static str, Int, [usize; 4]),
        Bitwise(&'static str, u32, [usize; 3]),
        Count(&'static str, u32, [usize; 2]),
        Extract(Int, [usize; 4]),
        Insert(u32, [usize; 5]),
        Permute([usize; 4]),
        Funnel([usize; 4]),
        Wide(Int, [usize; 4]),
        AddSat([usize; 3]),
        Carry(bool, u32, [usize; 6]),
        CompareInt(&'static str, Int, [usize; 4]),
        CompareFloat(&'static str, bool, [usize; 4]),
        Select(u32, [usize; 4]),
        Guarded(u32, [usize; 3]),
        ConvertInt(Int, Int, bool, [usize; 2]),
        ToFloat(&'static str, Int, bool, [usize; 2]),
        FromFloat(&'static str, bool, Int, [usize; 2]),
        Resize(bool, [usize; 2]),
        FloatUnary(&'static str, bool, bool, [usize; 2]),
        FloatBinary(&'static str, bool, (bool, bool), [usize; 3]),
        Fused(bool, (bool, bool), [usize; 4]),
    }

    fn registers<const N: usize>() -> impl Strategy<Value = [usize; N]> {
        prop::array::uniform(0..8_usize)
    }

    fn width(least: u32) -> impl Strategy<Value = u32> {
        select(&[16, 32, 64][..]).prop_filter("wide enough", move |width| *width >= least)
    }

    fn int(least: u32) -> impl Strategy<Value = Int> {
        (width(least), any::<bool>()).prop_map(|(bits, signed)| Int { bits, signed })
    }

    /// Types of conversions, those of 8 bits too.
    fn any_int() -> impl Strategy<Value = Int> {
        let bits = select(&[8, 16, 32, 64][..]);
        (bits, any::<bool>()).prop_map(|(bits, signed)| Int { bits, signed })
    }

    fn integer_steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (select(&INTEGER[..]), int(16), registers())
                .prop_map(|(name, ty, r)| Step::Integer(name, ty, r)),
            2 => (select(&BITWISE[..]), width(16), registers())
                .prop_map(|(name, bits, r)| Step::Bitwise(name, bits, r)),
            1 => (select(&COUNTS[..]), width(32), registers())
                .prop_map(|(name, bits, r)| Step::Count(name, bits, r)),
            1 => (int(32), registers()).prop_map(|(ty, r)| Step::Extract(ty, r)),
            1 => (width(32), registers()).prop_map(|(bits, r)| Step::Insert(bits, r)),
            1 => registers().prop_map(Step::Permute),
            1 => registers().prop_map(Step::Funnel),
            1 => (select(&[16, 32][..]), any::<bool>(), registers())
                .prop_map(|(bits, signed, r)| Step::Wide(Int { bits, signed }, r)),
            1 => registers().prop_map(Step::AddSat),
            1 => (any::<bool>(), width(32), registers())
                .prop_map(|(subtract, bits, r)| Step::Carry(subtract, bits, r)),
            1 => (select(&COMPARISONS[..6]), int(16), registers())
                .prop_map(|(name, ty, r)| Step::CompareInt(name, ty, r)),
            1 => (width(16), registers()).prop_map(|(bits, r)| Step::Select(bits, r)),
            1 => (width(16), registers()).prop_map(|(bits, r)| Step::Guarded(bits, r)),
            2 => (any_int(), any_int(), any::<bool>(), registers())
                .prop_map(|(to, from, sat, r)| Step::ConvertInt(to, from, sat, r)),
        ]
    }

    fn float_steps() -> impl Strategy<Value = Step> {
        let flags = || (any::<bool>(), any::<bool>());
        prop_oneof![
            2 => (select(&BINARY[..]), any::<bool>(), flags(), registers())
                .prop_map(|(name, double, flags, r)| Step::FloatBinary(name, double, flags, r)),
            1 => (select(&UNARY[..]), any::<bool>(), any::<bool>(), registers())
                .prop_map(|(name, double, ftz, r)| Step::FloatUnary(name, double, ftz, r)),
            1 => (any::<bool>(), flags(), registers())
                .prop_map(|(double, flags, r)| Step::Fused(double, flags, r)),
            1 => (select(&COMPARISONS[..]), any::<bool>(), registers())
                .prop_map(|(name, double, r)| Step::CompareFloat(name, double, r)),
            1 => (select(&["rn", "rz", "rm", "rp"][..]), any_int(), any::<bool>(), registers())
                .prop_map(|(rounding, from, double, r)| Step::ToFloat(rounding, from, double, r)),
            1 => (select(&["rni", "rzi", "rmi", "rpi"][..]), any::<bool>(), any_int(), registers())
                .prop_map(|(rounding, double, to, r)| Step::FromFloat(rounding, double, to, r)),
            1 => (any::<bool>(), registers()).prop_map(|(widen, r)| Step::Resize(widen, r)),
        ]
    }

    impl Step {
        /// The instruction's text.
        fn text(&self) -> String {
            let list = |width: u32, indices: &[usize]| {
                indices.iter().map(|i| register(width, *i)).collect::<Vec<_>>().join(", ")
            };
            let float = |double: bool| if double { ("f64", 64) } else { ("f32", 32) };
            let flag = |on: bool, name: &'static str| if on { name } else { "" };
            match self {
                Self::Integer(name, ty, r) => {
                    let operands = if matches!(*name, "mad.lo" | "mad.hi" | "sad") { 4 } else { 3 };
                    format!("{name}.{} {};", ty.name(), list(ty.bits, &r[..operands]))
                }
                Self::Bitwise(name, bits, [d, a, b]) => match *name {
                    "brev" if *bits == 16 => format!("not.b16 {};", list(16, &[*d, *a])),
                    "not" | "cnot" | "brev" => {
                        format!("{name}.b{bits} {};", list(*bits, &[*d, *a]))
                    }
                    "shl" | "shr.u" | "shr.s" => {
                        let ty = if *name == "shl" { "shl.b" } else { name };
                        format!("{ty}{bits} {}, {};", list(*bits, &[*d, *a]), register(32, *b))
                    }
                    _ => format!("{name}.b{bits} {};", list(*bits, &[*d, *a, *b])),
                },
                Self::Count(name, bits, [d, a]) => {
                    format!("{name}{bits} {}, {};", register(32, *d), register(*bits, *a))
                }
                Self::Extract(ty, [d, a, b, c]) => {
                    format!(
                        "bfe.{} {}, {};",
                        ty.name(),
                        list(ty.bits, &[*d, *a]),
                        list(32, &[*b, *c])
                    )
                }
                Self::Insert(bits, [d, a, b, c, e]) => {
                    format!("bfi.b{bits} {}, {};", list(*bits, &[*d, *a, *b]), list(32, &[*c, *e]))
                }
                Self::Permute(r) => format!("prmt.b32 {};", list(32, r)),
                Self::Funnel(r) => format!("shf.l.wrap.b32 {};", list(32, r)),
                Self::Wide(ty, [d, a, b, c]) => {
                    let double = 2 * ty.bits;
                    let (d, c) = (register(double, *d), register(double, *c));
                    format!("mad.wide.{} {d}, {}, {c};", ty.name(), list(ty.bits, &[*a, *b]))
                }
                Self::AddSat(r) => format!("add.sat.s32 {};", list(32, r)),
                Self::Carry(subtract, bits, [d, a, b, e, f, g]) => {
                    let name = if *subtract { "sub" } else { "add" };
                    let (first, second) = (list(*bits, &[*d, *a, *b]), list(*bits, &[*e, *f, *g]));
                    format!("{name}.cc.u{bits} {first}; {name}c.u{bits} {second};")
                }
                Self::CompareInt(name, ty, [p, a, b, c]) => {
                    let operands = list(ty.bits, &[*a, *b]);
                    format!("setp.{name}.and.{} %p{}, {operands}, !%p{};", ty.name(), p % 4, c % 4)
                }
                Self::CompareFloat(name, double, [p, a, b, c]) => {
                    let (ty, width) = float(*double);
                    let operands = list(width, &[*a, *b]);
                    format!("setp.{name}.or.{ty} %p{}, {operands}, %p{};", p % 4, c % 4)
                }
                Self::Select(bits, [d, a, b, p]) => {
                    format!("selp.b{bits} {}, %p{};", list(*bits, &[*d, *a, *b]), p % 4)
                }
                Self::Guarded(bits, [d, a, p]) => {
                    format!("@!%p{} add.u{bits} {}, 3;", p % 4, list(*bits, &[*d, *a]))
                }
                Self::ConvertInt(to, from, sat, [d, a]) => {
                    let (d, a) = (register(to.bits.max(16), *d), register(from.bits.max(16), *a));
                    format!("cvt{}.{}.{} {d}, {a};", flag(*sat, ".sat"), to.name(), from.name())
                }
                Self::ToFloat(rounding, from, double, [d, a]) => {
                    let (ty, width) = float(*double);
                    let (d, a) = (register(width, *d), register(from.bits.max(16), *a));
                    format!("cvt.{rounding}.{ty}.{} {d}, {a};", from.name())
                }
                Self::FromFloat(rounding, double, to, [d, a]) => {
                    let (ty, width) = float(*double);
                    let (d, a) = (register(to.bits.max(16), *d), register(width, *a));
                    format!("cvt.{rounding}.{}.{ty} {d}, {a};", to.name())
                }
                Self::Resize(true, [d, a]) => {
                    format!("cvt.f64.f32 {}, {};", register(64, *d), register(32, *a))
                }
                Self::Resize(false, [d, a]) => {
                    format!("cvt.rn.f32.f64 {}, {};", register(32, *d), register(64, *a))
                }
                Self::FloatUnary(name, double, ftz, r) => {
                    let (ty, width) = float(*double);
                    format!("{name}{}.{ty} {};", flag(*ftz && !double, ".ftz"), list(width, r))
                }
                Self::FloatBinary(name, double, (ftz, sat), r) => {
                    let (ty, width) = float(*double);
                    let sat = *sat && !double && matches!(*name, "add.rn" | "sub.rn" | "mul.rn");
                    let flags = [flag(*ftz && !double, ".ftz"), flag(sat, ".sat")].concat();
                    format!("{name}{flags}.{ty} {};", list(width, r))
                }
                Self::Fused(double, (ftz, sat), r) => {
                    let (ty, width) = float(*double);
                    let flags =
                        [flag(*ftz && !double, ".ftz"), flag(*sat && !double, ".sat")].concat();
                    format!("fma.rn{flags}.{ty} {};", list(width, r))
                }
            }
        }

        /// What the instruction does to one lane.
        fn apply(&self, s: &mut State) {
            match *self {
                Self::Integer(name, ty, [d, a, b, c]) => {
                    let file = s.file(ty.bits);
                    file[d] = reference::integer(name, ty, [file[a], file[b], file[c]]);
                }
                Self::Bitwise(name, bits, [d, a, b]) => {
                    let name = if name == "brev" && bits == 16 { "not" } else { name };
                    let shift = matches!(name, "shl" | "shr.u" | "shr.s");
                    let by = if shift { s.w[b] } else { s.file(bits)[b] };
                    let file = s.file(bits);
                    file[d] = reference::bitwise(name, bits, file[a], by);
                }
                Self::Count(name, bits, [d, a]) => {
                    s.w[d] = reference::count(name, bits, s.file(bits)[a]);
                }
                Self::Extract(ty, [d, a, b, c]) => {
                    let (b, c) = (s.w[b], s.w[c]);
                    let file = s.file(ty.bits);
                    file[d] = reference::extract(ty, file[a], b, c);
                }
                Self::Insert(bits, [d, a, b, c, e]) => {
                    let (c, e) = (s.w[c], s.w[e]);
                    let file = s.file(bits);
                    file[d] = reference::insert(bits, file[a], file[b], c, e);
                }
                Self::Permute([d, a, b, c]) => s.w[d] = reference::permute(s.w[a], s.w[b], s.w[c]),
                Self::Funnel([d, a, b, c]) => {
                    s.w[d] = reference::shf_left_wrap(s.w[a], s.w[b], s.w[c]);
                }
                Self::Wide(ty, [d, a, b, c]) => {
                    let file = s.file(ty.bits);
                    let product = ty.value(file[a]) * ty.value(file[b]);
                    let result = Int { bits: 2 * ty.bits, ..ty };
                    let file = s.file(result.bits);
                    file[d] = result.cut(product + result.value(file[c]));
                }
                Self::AddSat([d, a, b]) => {
                    let ty = Int { bits: 32, signed: true };
                    s.w[d] = ty.cut(ty.clamp(ty.value(s.w[a]) + ty.value(s.w[b])));
                }
                Self::Carry(subtract, bits, [d, a, b, e, f, g]) => {
                    let ty = Int { bits, signed: false };
                    let sum = |x: u64, y: u64, carry: i128| {
                        let (x, y) = (ty.value(x), ty.value(y));
                        let exact = if subtract { x - y - carry } else { x + y + carry };
                        (ty.cut(exact), i128::from(exact < 0 || exact >> bits != 0))
                    };
                    let file = s.file(bits);
                    let carry;
                    (file[d], carry) = sum(file[a], file[b], 0);
                    file[e] = sum(file[f], file[g], carry).0;
                }
                Self::CompareInt(name, ty, [p, a, b, c]) => {
                    let file = s.file(ty.bits);
                    let order = ty.value(file[a]).cmp(&ty.value(file[b]));
                    s.p[p % 4] = reference::compare(name, Some(order)) && !s.p[c % 4];
                }
                Self::CompareFloat(name, double, [p, a, b, c]) => {
                    let order = if double {
                        Double::order(s.d[a], s.d[b])
                    } else {
                        Single::order(s.w[a], s.w[b])
                    };
                    s.p[p % 4] = reference::compare(name, order) || s.p[c % 4];
                }
                Self::Select(bits, [d, a, b, p]) => {
                    let chosen = if s.p[p % 4] { a } else { b };
                    let file = s.file(bits);
                    file[d] = file[chosen];
                }
                Self::Guarded(bits, [d, a, p]) => {
                    if !s.p[p % 4] {
                        let file = s.file(bits);
                        file[d] = Int { bits, signed: false }.cut(i128::from(file[a]) + 3);
                    }
                }
                Self::ConvertInt(to, from, sat, [d, a]) => {
                    let value = from.value(s.file(from.bits.max(16))[a]);
                    let value = if sat { to.clamp(value) } else { value };
                    let register = to.bits.max(16);
                    // A result of 8 bits is extended to its register.
                    let whole = Int { bits: register, signed: false };
                    s.file(register)[d] = whole.cut(to.value(to.cut(value)));
                }
                Self::ToFloat(rounding, from, double, [d, a]) => {
                    let value = from.value(s.file(from.bits.max(16))[a]);
                    let bits = reference::int_to_float(value, rounding, double);
                    s.file(if double { 64 } else { 32 })[d] = bits;
                }
                Self::FromFloat(rounding, double, to, [d, a]) => {
                    let value = if double { f64::from_bits(s.d[a]) } else { single(s.w[a]).into() };
                    let register = to.bits.max(16);
                    let result = to.value(reference::float_to_int(value, rounding, to));
                    s.file(register)[d] = Int { bits: register, signed: false }.cut(result);
                }
                Self::Resize(true, [d, a]) => {
                    let value = f64::from(single(s.w[a]));
                    s.d[d] = if value.is_nan() { u64::MAX >> 1 } else { value.to_bits() };
                }
                #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
                Self::Resize(false, [d, a]) => {
                    let value = f64::from_bits(s.d[a]) as f32;
                    s.w[d] = if value.is_nan() { 0x7fff_ffff } else { value.to_bits().into() };
                }
                Self::FloatUnary(name, true, _, [d, a]) => s.d[d] = Double::unary(name, s.d[a]),
                Self::FloatUnary(name, false, ftz, [d, a]) => {
                    let flush = |bits| if ftz { reference::flushed(bits) } else { bits };
                    s.w[d] = flush(Single::unary(name, flush(s.w[a])));
                }
                Self::FloatBinary(name, true, _, [d, a, b]) => {
                    s.d[d] = Double::binary(name, s.d[a], s.d[b]);
                }
                Self::FloatBinary(name, false, (ftz, sat), [d, a, b]) => {
                    let flush = |bits| if ftz { reference::flushed(bits) } else { bits };
                    let result = flush(Single::binary(name, flush(s.w[a]), flush(s.w[b])));
                    let clamps = matches!(name, "add.rn" | "sub.rn" | "mul.rn");
                    s.w[d] = if sat && clamps { reference::saturated(result) } else { result };
                }
                Self::Fused(true, _, [d, a, b, c]) => {
                    s.d[d] = Double::fused(s.d[a], s.d[b], s.d[c])
                }
                Self::Fused(false, (ftz, sat), [d, a, b, c]) => {
                    let flush = |bits| if ftz { reference::flushed(bits) } else { bits };
                    let result = flush(Single::fused(flush(s.w[a]), flush(s.w[b]), flush(s.w[c])));
                    s.w[d] = if sat { reference::saturated(result) } else { result };
                }
            }
        }
    }

    fn single(bits: u64) -> f32 {
        f32::from_bits(u32::try_from(bits).expect("cut"))
    }

    /// A kernel of these steps: eight numbers of 64 bits in, all registers out.
    fn kernel(steps: &[Step]) -> String {
        let mut body = String::new();
        for i in 0..8 {
            let _ = writeln!(
                body,
                "ld.global.u64 %d{i}, [%in+{0}]; cvt.u32.u64 %w{i}, %d{i}; cvt.u16.u32 %h{i}, %w{i};",
                8 * i
            );
        }
        let _ = writeln!(
            body,
            "setp.ne.u32 %p0, %w0, %w0; mov.pred %p1, %p0; mov.pred %p2, 1; mov.pred %p3, %p0;"
        );
        for step in steps {
            let _ = writeln!(body, "{}", step.text());
        }
        for i in 0..8 {
            let _ = writeln!(
                body,
                "st.global.u64 [%out+{}], %d{i}; st.global.u32 [%out+{}], %w{i}; st.global.u16 [%out+{}], %h{i};",
                8 * i,
                64 + 4 * i,
                96 + 2 * i
            );
        }
        format!(
            ".version 8.0\n.target sm_75\n.address_size 64\n.entry k(.param .u64 o, .param .u64 i) {{\n\
             .reg .b16 %h<8>; .reg .b32 %w<8>; .reg .b32 %t; .reg .b64 %d<8>; .reg .pred %p<4>;\n\
             .reg .b64 %in; .reg .b64 %out; mov.u32 %t, %tid.x;\n\
             ld.param.u64 %out, [o]; ld.param.u64 %in, [i];\n\
             mad.wide.u32 %out, %t, 112, %out; mad.wide.u32 %in, %t, 64, %in;\n{body} ret; }}"
        )
    }

    /// Numbers at the limits of types and formats, and any.
    fn number() -> impl Strategy<Value = u64> {
        let whole = any::<u64>();
        let edges = prop_oneof![
            select(&[0_u64, 1, 2, 31, 32, 63, 64, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff][..]),
            select(
                &[0x7fff_ffff_u64, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX >> 1, u64::MAX][..]
            ),
        ];
        let singles = prop::num::f32::ANY.prop_map(|value| u64::from(value.to_bits()));
        let near = (-300.0_f32..300.0).prop_map(|value| u64::from(value.to_bits()));
        let doubles = prop::num::f64::ANY.prop_map(f64::to_bits);
        prop_oneof![whole, edges, singles, near, doubles, (-1e6..1e6_f64).prop_map(f64::to_bits)]
    }

    fn check(steps: &[Step], inputs: &[u64]) {
        const LANES: usize = 32;
        let mut memory = TestMemory::default();
        let bytes: Vec<u8> = inputs.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (out, input) = (memory.add(&[0; 112 * LANES]), memory.add(&bytes));
        let run = Run { threads: 1, ..Run::default() };
        run.go(&kernel(steps), "k", &[Arg::U64(out), Arg::U64(input)], &memory).expect("no fault");
        for (lane, got) in memory.bytes_mut(out).chunks(112).enumerate() {
            let mut state = State { p: [false, false, true, false], ..State::default() };
            for i in 0..8 {
                let value = inputs[lane * 8 + i];
                (state.d[i], state.w[i], state.h[i]) = (value, value & 0xffff_ffff, value & 0xffff);
            }
            let start = state;
            steps.iter().for_each(|step| step.apply(&mut state));
            let widen = |list: Vec<u32>| list.into_iter().map(u64::from).collect::<Vec<_>>();
            let d = values(&got[..64], u64::from_le_bytes);
            let w = widen(values(&got[64..96], u32::from_le_bytes));
            let h = widen(values(&got[96..], |bytes| u16::from_le_bytes(bytes).into()));
            let text = || steps.iter().map(Step::text).collect::<Vec<_>>().join("\n");
            assert!(
                d == state.d && w == state.w && h == state.h,
                "{}\nof d {:x?}\ngave d {d:x?}\n not {:x?}\ngave w {w:x?}\n not {:x?}\ngave h {h:x?}\n not {:x?}",
                text(),
                start.d,
                state.d,
                state.w,
                state.h
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn programs_on_integers_agree(
            steps in prop::collection::vec(integer_steps(), 1..16),
            inputs in prop::collection::vec(number(), 256),
        ) {
            check(&steps, &inputs);
        }

        #[test]
        fn programs_on_floats_agree(
            steps in prop::collection::vec(prop_oneof![3 => float_steps(), 1 => integer_steps()], 1..16),
            inputs in prop::collection::vec(number(), 256),
        ) {
            check(&steps, &inputs);
        }
    }
}
