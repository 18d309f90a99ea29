//! Decoded instructions. Operands are numbers of slots: registers, literals,
//! addresses and special registers alike live in one of three files (32-bit
//! lanes, 64-bit lanes, predicates), so executing needs no case for their kind.

use super::{
    Compare, CountOp, FloatCompare, FloatMode, FloatOp, FloatUnary, HalfMode, HalfOp, IntOp,
    IntUnary, PermuteMode, PredOp, Round, ShiftOp, Slot, SpecialClock, VoteMode,
};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Bra {
        target: u32,
    },
    /// Branch through `Code::tables[table]`.
    BraIndexed {
        index: Slot,
        table: u32,
    },
    Exit,
    Trap,
    /// Goes to a function, which is to come back behind this instruction.
    Call {
        target: u32,
        link: Slot,
    },
    /// Goes to the function that the pointer in `a` points to.
    CallIndirect {
        a: Slot,
        link: Slot,
    },
    /// Keeps the return address that a call left in `link`.
    Enter {
        d: Slot,
        link: Slot,
    },
    /// Goes to the return address in `a`.
    Return {
        a: Slot,
    },
    /// Moves a call's parameter or result.
    CopyFrame {
        copy: u32,
    },
    /// `printf`.
    Print {
        print: u32,
    },
    /// A failed `assert`.
    AssertFail {
        report: u32,
    },
    Int16 {
        op: IntOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Int32 {
        op: IntOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Int64 {
        op: IntOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Shift16 {
        op: ShiftOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Shift32 {
        op: ShiftOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Shift64 {
        op: ShiftOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Unary16 {
        op: IntUnary,
        d: Slot,
        a: Slot,
    },
    Unary32 {
        op: IntUnary,
        d: Slot,
        a: Slot,
    },
    Unary64 {
        op: IntUnary,
        d: Slot,
        a: Slot,
    },
    Count32 {
        op: CountOp,
        d: Slot,
        a: Slot,
    },
    Count64 {
        op: CountOp,
        d: Slot,
        a: Slot,
    },
    MulWide16 {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    MulWide32 {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Mad32 {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    MadWide32 {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// Product of the low 24 bits of each, shifted right by `shift`.
    Mul24 {
        signed: bool,
        shift: u8,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// Sum with a carry predicate, that is read if there is a carry in, and written.
    Carry {
        wide: bool,
        subtract: bool,
        carry_in: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        flag: Slot,
    },
    Extract32 {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Extract64 {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Insert32 {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        e: Slot,
    },
    Insert64 {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        e: Slot,
    },
    Permute {
        mode: PermuteMode,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Logic3 {
        table: u8,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Funnel {
        left: bool,
        wrap: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// Sum of products of two 16-bit halves of `a` with two bytes of `b`, plus `c`.
    DotHalves {
        high: bool,
        a_signed: bool,
        b_signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `op` on both halves of 32 bits.
    IntPair {
        op: IntOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// Bits from `a` on, as many as `b` says.
    BitMask {
        wrap: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// `a` cut to the bits that `b` counts, then extended.
    Extend {
        signed: bool,
        wrap: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// Position of the `c`th set bit of `a`, counted from position `b`.
    FindNth {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// Sum of products of the four bytes, plus `c`.
    DotBytes {
        a_signed: bool,
        b_signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Compare16 {
        compare: Compare,
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Compare32 {
        compare: Compare,
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Compare64 {
        compare: Compare,
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    CompareF32 {
        compare: FloatCompare,
        ftz: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    CompareF64 {
        compare: FloatCompare,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// Predicate kinds of numbers (`testp`), by the bits of `TEST_*`.
    Test32 {
        kinds: u8,
        d: Slot,
        a: Slot,
    },
    Test64 {
        kinds: u8,
        d: Slot,
        a: Slot,
    },
    Pred {
        op: PredOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    PredNot {
        d: Slot,
        a: Slot,
    },
    PredSet {
        d: Slot,
        value: bool,
    },
    Move32 {
        d: Slot,
        a: Slot,
    },
    Move64 {
        d: Slot,
        a: Slot,
    },
    /// `b` above the low 16 bits of `a`.
    Join16 {
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// `b` above `a`.
    Join32 {
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Half16 {
        high: bool,
        d: Slot,
        a: Slot,
    },
    Half32 {
        high: bool,
        d: Slot,
        a: Slot,
    },
    F32 {
        op: FloatOp,
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    F64 {
        op: FloatOp,
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Fma32 {
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Fma64 {
        round: Round,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    F32Unary {
        op: FloatUnary,
        mode: FloatMode,
        d: Slot,
        a: Slot,
    },
    F64Unary {
        op: FloatUnary,
        mode: FloatMode,
        d: Slot,
        a: Slot,
    },
    /// Arithmetic on halves; instructions of fewer operands repeat the last.
    Half {
        op: HalfOp,
        mode: HalfMode,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `d` and `a` are in the files of the conversion's types.
    Convert {
        conversion: u32,
        d: Slot,
        a: Slot,
        wide_d: bool,
        wide_a: bool,
    },
    S32ToF32 {
        signed: bool,
        d: Slot,
        a: Slot,
    },
    Widen {
        signed: bool,
        d: Slot,
        a: Slot,
    },
    Load {
        access: u32,
    },
    Store {
        access: u32,
    },
    Atomic {
        atomic: u32,
    },
    AtomicVector(u32),
    AtomicWide(u32),
    Stage {
        stage: u32,
    },
    Shuffle {
        shuffle: u32,
    },
    Vote {
        mode: VoteMode,
        d: Slot,
        p: Slot,
        members: Slot,
    },
    Ballot {
        d: Slot,
        p: Slot,
        members: Slot,
    },
    /// Lanes whose value equals this lane's.
    MatchAny {
        wide: bool,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    /// The members, in lanes where all of them have the same value, else none.
    MatchAll {
        wide: bool,
        d: Slot,
        /// Whether they have; a slot that nobody reads if nobody asks.
        p: Slot,
        a: Slot,
        members: Slot,
    },
    /// The lowest of the members, and whether this lane is it.
    Elect {
        d: Slot,
        p: Slot,
        members: Slot,
    },
    /// Combines the members' values; `op` is one that is associative.
    Reduce {
        op: IntOp,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    WarpBarrier {
        members: Slot,
    },
    Barrier {
        barrier: u32,
    },
    Fence,
    Clock {
        clock: SpecialClock,
        d: Slot,
    },
    /// Sleeps; `time` is in nanoseconds.
    Sleep {
        time: Slot,
    },
}
