//! Branches, ends of threads, and barriers of a block.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{Barrier, BarrierReduce, BarrierVote, Op, Type};
use crate::parse::{Operand, PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_control(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "bra" => {
                m.take("uni");
                let [target] = self.operands(s)?;
                let Operand::Name { name, part: None, offset: 0, negated: false } = *target else {
                    return m.error("its target must be a label");
                };
                self.branch_to(name)?;
            }
            "brx" => {
                if !m.take("idx") {
                    return m.error("'.idx' is needed");
                }
                m.take("uni");
                let [index, table] = self.operands(s)?;
                let index = self.source(index, Type::U32)?;
                let Operand::Name { name, part: None, offset: 0, negated: false } = *table else {
                    return m.error("its table must be a label");
                };
                self.branch_through(index, name)?;
            }
            "ret" => {
                m.take("uni");
                let [] = self.operands(s)?;
                self.emit_return()?;
            }
            "exit" => {
                let [] = self.operands(s)?;
                self.emit(Op::Exit)?;
            }
            "trap" => {
                let [] = self.operands(s)?;
                self.emit(Op::Trap)?;
            }
            "nanosleep" => {
                if m.ty()? != Type::U32 {
                    return m.error("it exists for .u32 only");
                }
                let [time] = self.operands(s)?;
                let time = self.source(time, Type::U32)?;
                self.emit(Op::Sleep { time })?;
            }
            "bar" | "barrier" => self.lower_barrier(s, m)?,
            "call" => self.lower_call(s, m)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn lower_barrier(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        if s.mnemonic == "bar" && m.take("warp") {
            if !m.take("sync") {
                return m.error("'.sync' is needed");
            }
            let [members] = self.operands(s)?;
            let members = self.source(members, Type::B32)?;
            return self.emit(Op::WarpBarrier { members });
        }
        m.take("cta");
        if m.take("red") {
            return self.lower_barrier_vote(s, m);
        }
        let wait = m.take("sync");
        if !wait && !m.take("arrive") {
            return m.error("one of '.sync' and '.arrive' is needed");
        }
        m.take("aligned");
        let (id, threads) = match s.operands.as_slice() {
            [id] if wait => (id, None),
            [id, threads] => (id, Some(threads)),
            _ => return m.error("it takes a barrier and a number of threads"),
        };
        self.emit_barrier(id, threads, wait, None)
    }

    fn emit_barrier(
        &mut self,
        id: &Operand<'a>,
        threads: Option<&Operand<'a>>,
        wait: bool,
        reduce: Option<BarrierReduce>,
    ) -> Result<(), PtxError> {
        let id = self.source(id, Type::U32)?;
        let threads = match threads {
            Some(threads) => Some(self.source(threads, Type::U32)?),
            None => None,
        };
        let barrier = u32::try_from(self.code.barriers.len()).unwrap_or(u32::MAX);
        self.code.barriers.push(Barrier { id, threads, wait, reduce });
        self.emit(Op::Barrier { barrier })
    }

    /// `bar.red`: a barrier at which the threads vote.
    fn lower_barrier_vote(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<(), PtxError> {
        m.take("aligned");
        let mode = m.find(|modifier| match modifier {
            "popc" => Some(BarrierVote::Count),
            "and" => Some(BarrierVote::All),
            "or" => Some(BarrierVote::Any),
            _ => None,
        });
        let (Some(mode), ty) = (mode, m.ty()?) else {
            return m.error("a known operation is missing");
        };
        if ty != (if mode == BarrierVote::Count { Type::U32 } else { Type::Pred }) {
            return m.error("it does not exist for this type");
        }
        let (d, id, threads, p) = match s.operands.as_slice() {
            [d, id, p] => (d, id, None, p),
            [d, id, threads, p] => (d, id, Some(threads), p),
            _ => return m.error("it takes a result, a barrier and a predicate"),
        };
        let d = if mode == BarrierVote::Count {
            self.destination(d, Type::U32)?
        } else {
            self.predicate_destination(d)?
        };
        let p = self.predicate_source(p, 0)?;
        self.emit_barrier(id, threads, true, Some(BarrierReduce { mode, d, p }))
    }
}
