//! How a link stands, as people are told.

use std::fmt;

use super::SLOW_PERCENT;
use crate::{
    model::{Link, LinkPace, LinkRecord},
    recovery::{event::Now, ladder::span, machine::Machine},
};

/// How a link stands, for people.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::recovery) enum Word {
    /// It has passed in these boots and with these versions.
    Passed { ago_ms: u64, pace: Option<LinkPace>, is_slow: bool },
    /// It did not, and why.
    Failed(String),
    /// It is being tried.
    UnderWay,
    /// It is to be tried.
    Awaited,
    /// It has failed since it passed.
    Doubted,
    /// It could not be tried, and why.
    NotMade(String),
    /// As its ends are it cannot be tried, and why.
    CannotBe(&'static str),
    /// Nothing tries it before it is needed.
    Untried,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed { ago_ms, pace, is_slow } => {
                write!(f, "passed its test {} ago", span(*ago_ms))?;
                if let Some(pace) = pace {
                    write!(f, " ({pace})")?;
                }
                if *is_slow { f.write_str(", slower than it once was") } else { Ok(()) }
            }
            Self::Failed(why) => write!(f, "did not pass its test: {why}"),
            Self::UnderWay => f.write_str("is being tried"),
            Self::Awaited => f.write_str("is to be tried"),
            Self::Doubted => f.write_str(
                "has failed since it passed its test, and is tried before a running job changes to it",
            ),
            Self::NotMade(why) => write!(f, "could not be tried: {why}"),
            Self::CannotBe(why) => write!(f, "cannot be tried: {why}"),
            Self::Untried => f.write_str("is tried before a running job changes to it"),
        }
    }
}

impl Machine {
    /// How a link stands.
    pub(in crate::recovery) fn word_on_link(&self, now: Now, link: &Link) -> Word {
        if self.is_being_tried(link) {
            return Word::UnderWay;
        }
        let standing = self.standing_of(link);
        if let Some(why) = standing.and_then(|standing| standing.failed.clone()) {
            return Word::Failed(why);
        }
        if self.has_failed(link) {
            return Word::Failed("machines at its ends went down with tests of this kind".to_owned());
        }
        if let Some(standing) = standing.filter(|_| self.has_passed(link)) {
            if standing.record.doubted {
                return Word::Doubted;
            }
            let LinkRecord { pace, best, tried_unix_ms, .. } = standing.record;
            let is_slow =
                pace.zip(best).is_some_and(|(pace, best)| best.is_much_better_than(pace, SLOW_PERCENT));
            return Word::Passed { ago_ms: now.unix_ms.saturating_sub(tried_unix_ms), pace, is_slow };
        }
        match standing.and_then(|standing| standing.obstacle.clone()) {
            _ if self.awaits_test(link) => Word::Awaited,
            Some(why) => Word::NotMade(why),
            None => self.keeps_from_trying(link).map_or(Word::Untried, Word::CannotBe),
        }
    }
}
