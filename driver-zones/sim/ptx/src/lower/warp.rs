//! Instructions that work on a warp as a whole.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{IntOp, Op, Shuffle, ShuffleMode, Type, VoteMode};
use crate::parse::{PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_warp(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "activemask" => {
                if m.ty()? != Type::B32 {
                    return m.error("it exists for .b32 only");
                }
                let [d] = self.operands(s)?;
                let d = self.destination(d, Type::B32)?;
                self.emit(Op::ActiveMask { d })?;
                return Ok(true);
            }
            "shfl" | "vote" | "match" | "redux" | "elect" => {}
            _ => return Ok(false),
        }
        if !m.take("sync") {
            return m.error("only the '.sync' form is supported");
        }
        match s.mnemonic {
            "shfl" => self.lower_shuffle(s, m)?,
            "vote" => self.lower_vote(s, m)?,
            "match" => self.lower_match(s, m)?,
            "elect" => {
                let (Some(p), [d, members]) = (&s.second, self.operands(s)?) else {
                    return m.error("it has two results");
                };
                let (d, p) = (self.destination(d, Type::B32)?, self.predicate_destination(p)?);
                let members = self.source(members, Type::B32)?;
                self.emit(Op::Elect { d, p, members })?;
            }
            _ => self.lower_reduce(s, m)?,
        }
        Ok(true)
    }

    fn lower_shuffle(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let mode = m.find(|modifier| match modifier {
            "up" => Some(ShuffleMode::Up),
            "down" => Some(ShuffleMode::Down),
            "bfly" => Some(ShuffleMode::Butterfly),
            "idx" => Some(ShuffleMode::Index),
            _ => None,
        });
        let Some(mode) = mode else { return m.error("a known mode is missing") };
        if m.ty()? != Type::B32 {
            return m.error("it exists for .b32 only");
        }
        let [d, a, b, c, members] = self.operands(s)?;
        let d = self.destination(d, Type::B32)?;
        let p = match &s.second {
            Some(p) => Some(self.predicate_destination(p)?),
            None => None,
        };
        let shuffle = Shuffle {
            mode,
            d,
            p,
            a: self.source(a, Type::B32)?,
            b: self.source(b, Type::B32)?,
            c: self.source(c, Type::B32)?,
            members: self.source(members, Type::B32)?,
        };
        let index = u32::try_from(self.code.shuffles.len()).unwrap_or(u32::MAX);
        self.code.shuffles.push(shuffle);
        self.emit(Op::Shuffle { shuffle: index })
    }

    fn lower_vote(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let [d, p, members] = self.operands(s)?;
        let members = self.source(members, Type::B32)?;
        let p = self.predicate_source(p, 0)?;
        if m.take("ballot") {
            if m.ty()? != Type::B32 {
                return m.error("it exists for .b32 only");
            }
            let d = self.destination(d, Type::B32)?;
            return self.emit(Op::Ballot { d, p, members });
        }
        let mode = m.find(|modifier| match modifier {
            "all" => Some(VoteMode::All),
            "any" => Some(VoteMode::Any),
            "uni" => Some(VoteMode::Uni),
            _ => None,
        });
        let Some(mode) = mode else { return m.error("a known mode is missing") };
        if m.ty()? != Type::Pred {
            return m.error("its type must be .pred");
        }
        let d = self.predicate_destination(d)?;
        self.emit(Op::Vote { mode, d, p, members })
    }

    fn lower_match(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let all = m.take("all");
        if !all && (!m.take("any") || s.second.is_some()) {
            return m.error("one of '.any' and '.all' is needed");
        }
        let ty = m.ty()?;
        if !matches!(ty, Type::B32 | Type::B64) {
            return m.error("it exists for .b32 and .b64 only");
        }
        let [d, a, members] = self.operands(s)?;
        let d = self.destination(d, Type::B32)?;
        let (a, members) = (self.source(a, ty)?, self.source(members, Type::B32)?);
        let wide = ty == Type::B64;
        if !all {
            return self.emit(Op::MatchAny { wide, d, a, members });
        }
        let p = match &s.second {
            Some(p) => self.predicate_destination(p)?,
            None => self.temporary(Type::Pred, u8::MAX)?,
        };
        self.emit(Op::MatchAll { wide, d, p, a, members })
    }

    fn lower_reduce(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let name = m.find(|modifier| {
            ["add", "min", "max", "and", "or", "xor"].into_iter().find(|name| *name == modifier)
        });
        let op = match (name, m.ty()?) {
            (Some("add"), Type::U32 | Type::S32) => IntOp::Add,
            (Some("min"), Type::U32) => IntOp::MinU,
            (Some("min"), Type::S32) => IntOp::MinS,
            (Some("max"), Type::U32) => IntOp::MaxU,
            (Some("max"), Type::S32) => IntOp::MaxS,
            (Some("and"), Type::B32) => IntOp::And,
            (Some("or"), Type::B32) => IntOp::Or,
            (Some("xor"), Type::B32) => IntOp::Xor,
            _ => return m.error("it is not supported for this type"),
        };
        let [d, a, members] = self.operands(s)?;
        let d = self.destination(d, Type::B32)?;
        let (a, members) = (self.source(a, Type::B32)?, self.source(members, Type::B32)?);
        self.emit(Op::Reduce { op, d, a, members })
    }
}
