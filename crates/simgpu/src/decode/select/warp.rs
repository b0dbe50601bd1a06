//! Shuffles, votes and other collectives of a warp.

use super::{Decoder, Name, Result};
use crate::decode::args::Arg;
use crate::exec::program::{Class, Collective, NONE, Op, Shuffle, ShuffleMode, WarpCollective};
use crate::exec::registers::Code;

impl Decoder<'_> {
    /// `d|p`: the row and the predicate.
    fn pair(&mut self, arg: &Arg) -> Result<(u32, u32)> {
        match arg {
            Arg::Pair(d, p) => {
                Ok((self.destination(d, Code::Word)?, self.destination(p, Code::Pred)?))
            }
            d => Ok((self.destination(d, Code::Word)?, NONE)),
        }
    }

    pub(super) fn shuffle(&mut self, name: &Name<'_>) -> Result<()> {
        let mode = name.parts.iter().find_map(|part| match *part {
            "up" => Some(ShuffleMode::Up),
            "down" => Some(ShuffleMode::Down),
            "bfly" => Some(ShuffleMode::Butterfly),
            "idx" => Some(ShuffleMode::Index),
            _ => None,
        });
        let Some(mode) = mode.filter(|_| name.has("sync")) else { return self.unknown() };
        let (d, pred) = self.pair(self.arg(0)?)?;
        let shuffle = Shuffle {
            mode,
            d,
            pred,
            a: self.source(self.arg(1)?, Code::Word)?,
            b: self.source(self.arg(2)?, Code::Word)?,
            c: self.source(self.arg(3)?, Code::Word)?,
            members: self.source(self.arg(4)?, Code::Word)?,
        };
        self.emit(Op::Shuffle(Box::new(shuffle)), Class::Control);
        Ok(())
    }

    pub(super) fn collective(&mut self, name: &Name<'_>) -> Result<()> {
        if name.base == "activemask" {
            let d = self.destination(self.arg(0)?, Code::Word)?;
            self.emit(Op::ActiveMask(d), Class::Control);
            return Ok(());
        }
        let Some(what) = what(name).filter(|_| name.has("sync")) else { return self.unknown() };
        let is_wide = name.kind() == "b64";
        let mut collective = WarpCollective {
            what,
            d: NONE,
            pred: NONE,
            a: NONE,
            is_negated: false,
            is_wide,
            members: self.source(self.arg(self.num_args().saturating_sub(1))?, Code::Word)?,
        };
        match what {
            Collective::Sync => {}
            Collective::Elect => (collective.d, collective.pred) = self.pair(self.arg(0)?)?,
            Collective::All | Collective::Any | Collective::Uniform | Collective::Ballot => {
                if what == Collective::Ballot {
                    collective.d = self.destination(self.arg(0)?, Code::Word)?;
                } else {
                    collective.pred = self.destination(self.arg(0)?, Code::Pred)?;
                }
                match self.arg(1)? {
                    Arg::Pred(pred, is_negated) => {
                        (collective.a, collective.is_negated) = (*pred, *is_negated);
                    }
                    constant => collective.a = self.pred(constant)?,
                }
            }
            _ => {
                (collective.d, collective.pred) = self.pair(self.arg(0)?)?;
                let code = if is_wide { Code::Double } else { Code::Word };
                collective.a = self.source(self.arg(1)?, code)?;
            }
        }
        self.emit(Op::Collective(Box::new(collective)), Class::Control);
        Ok(())
    }
}

fn what(name: &Name<'_>) -> Option<Collective> {
    let has = |part| name.has(part);
    Some(match name.base {
        "bar" => Collective::Sync,
        "elect" => Collective::Elect,
        "vote" if has("all") => Collective::All,
        "vote" if has("any") => Collective::Any,
        "vote" if has("uni") => Collective::Uniform,
        "vote" if has("ballot") => Collective::Ballot,
        "match" if has("any") => Collective::MatchAny,
        "match" if has("all") => Collective::MatchAll,
        "redux" if has("f32") => return None,
        "redux" if has("add") => Collective::Add,
        "redux" if has("min") && has("s32") => Collective::MinSigned,
        "redux" if has("max") && has("s32") => Collective::MaxSigned,
        "redux" if has("min") => Collective::MinUnsigned,
        "redux" if has("max") => Collective::MaxUnsigned,
        "redux" if has("and") => Collective::And,
        "redux" if has("or") => Collective::Or,
        "redux" if has("xor") => Collective::Xor,
        _ => return None,
    })
}
