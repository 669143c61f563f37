//! A rung of the ladder: the way a launch runs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    link::{Backend, LinkKind},
    plan::Mode,
};

/// With which model, in which mode, over what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rung {
    /// With the job's fallback model in place of its own.
    pub fallback: bool,
    /// How it is spread.
    pub mode: Mode,
    /// What ranks talk over; `None` without ranks.
    pub backend: Option<Backend>,
    /// What their links run over, the least of them; `None` without ranks.
    pub link_kind: Option<LinkKind>,
}

impl Rung {
    /// Whole models, each on its node.
    #[must_use]
    pub const fn independent(fallback: bool) -> Self {
        Self { fallback, mode: Mode::Independent, backend: None, link_kind: None }
    }

    /// Whether changing from `current` to this one is going up, where `asked` is the mode that somebody asked for. Without one,
    /// which mode is better is the planner's to say: it depends on the nodes.
    #[must_use]
    pub fn is_above(&self, current: &Self, asked: Option<Mode>) -> bool {
        if self.fallback != current.fallback {
            return current.fallback;
        }
        if self.mode != current.mode {
            let place = |mode: Mode| match asked {
                Some(asked) if mode == asked => 0,
                Some(Mode::Tensor) if mode == Mode::Pipeline => 1,
                _ => 2,
            };
            return asked.is_none() || place(self.mode) < place(current.mode);
        }
        let over = |rung: &Self| {
            let backend = match rung.backend {
                Some(Backend::Jaccl) => 0,
                Some(Backend::JacclRing) => 1,
                Some(Backend::Ring) => 2,
                None => 3,
            };
            (backend, rung.link_kind)
        };
        over(self) < over(current)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Independent => f.write_str("independent workers")?,
            Mode::Pipeline => f.write_str("a pipeline")?,
            Mode::Tensor => f.write_str("tensor-parallel ranks")?,
        }
        if let Some(backend) = self.backend {
            write!(f, " over {}", backend.word())?;
        }
        match self.link_kind {
            Some(LinkKind::Rdma) => f.write_str(" (RDMA)")?,
            Some(LinkKind::Thunderbolt) => f.write_str(" (Thunderbolt)")?,
            Some(LinkKind::Network) => f.write_str(" (an allowed network)")?,
            Some(LinkKind::Loopback) => f.write_str(" (one machine)")?,
            None => {}
        }
        if self.fallback { f.write_str(" with the fallback model") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gang(mode: Mode, backend: Backend, kind: LinkKind) -> Rung {
        Rung { fallback: false, mode, backend: Some(backend), link_kind: Some(kind) }
    }

    /// The ladder of the design, from the top.
    #[test]
    fn every_rung_is_above_those_below_it() {
        let ladder = [
            gang(Mode::Tensor, Backend::Jaccl, LinkKind::Rdma),
            gang(Mode::Pipeline, Backend::Jaccl, LinkKind::Rdma),
            gang(Mode::Pipeline, Backend::JacclRing, LinkKind::Rdma),
            gang(Mode::Pipeline, Backend::Ring, LinkKind::Thunderbolt),
            gang(Mode::Pipeline, Backend::Ring, LinkKind::Network),
            Rung::independent(false),
            Rung::independent(true),
        ];
        for (place, rung) in ladder.iter().enumerate() {
            for (other_place, other) in ladder.iter().enumerate() {
                let asked = Some(Mode::Tensor);
                assert_eq!(rung.is_above(other, asked), place < other_place, "{rung} above {other}");
            }
        }
    }

    #[test]
    fn without_a_wish_another_mode_is_as_the_planner_says_and_the_fallback_is_never_above() {
        let pipeline = gang(Mode::Pipeline, Backend::Ring, LinkKind::Network);
        let whole = Rung::independent(false);
        assert!(whole.is_above(&pipeline, None) && pipeline.is_above(&whole, None));
        assert!(!whole.is_above(&pipeline, Some(Mode::Pipeline)));
        assert!(!Rung::independent(true).is_above(&pipeline, None));
        assert!(!whole.is_above(&whole, None));
    }
}
