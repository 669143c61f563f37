//! The table for nodes without a word.
//!
//! Silence has two causes that look alike from the controller: a machine that is gone, and a way to it that is broken. Where
//! another node can look, they are told apart: what a machine computes that is still there is not thrown away at once.

use super::Policy;

/// What other nodes saw that looked for a silent one lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// Nobody could be asked, or nobody has answered.
    Unknown,
    /// All who answered do not see it.
    Unseen,
    /// At least one sees it: its machine is there.
    Seen,
}

/// What is known of a silent node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SilenceFacts {
    /// Since it was last heard.
    pub silent_ms: u64,
    /// Whether others see it.
    pub sight: Sight,
    /// All it has are ranks of gangs, none of them rank 0, whose rank 0 is heard and takes its steps within its budget: they
    /// compute, and could not without it.
    pub computes: bool,
}

/// What to do about a silent node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SilenceAnswer {
    /// It is not silent for long enough.
    Wait,
    /// It is silent, and keeps what it has for now.
    Keep,
    /// Its rows go to others, its gangs end.
    GiveUp,
}

/// The table. Read from the top; the first line that fits holds.
#[must_use]
pub fn answer_to_silence(facts: SilenceFacts, policy: &Policy) -> SilenceAnswer {
    match facts {
        SilenceFacts { silent_ms, .. } if silent_ms < policy.node_silent_ms => SilenceAnswer::Wait,
        SilenceFacts { sight: Sight::Unknown | Sight::Unseen, .. } => SilenceAnswer::GiveUp,
        SilenceFacts { computes: true, .. } => SilenceAnswer::Keep,
        SilenceFacts { silent_ms, .. } if silent_ms < policy.node_seen_silent_ms => SilenceAnswer::Keep,
        SilenceFacts { sight: Sight::Seen, .. } => SilenceAnswer::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_silence() {
        use Sight::{Seen, Unknown, Unseen};
        use SilenceAnswer::{GiveUp, Keep, Wait};
        let policy = Policy::default();
        let rows = [
            (4_799, Unknown, false, Wait),
            (4_799, Unseen, false, Wait),
            (4_799, Seen, true, Wait),
            (4_800, Unknown, false, GiveUp),
            (4_800, Unseen, false, GiveUp),
            (4_800, Seen, false, Keep),
            (14_999, Unseen, false, GiveUp),
            (14_999, Seen, false, Keep),
            (15_000, Seen, false, GiveUp),
            // That a gang computes is known for the length of its budget; that a machine is gone is known now.
            (4_800, Unknown, true, GiveUp),
            (4_800, Unseen, true, GiveUp),
            (4_800, Seen, true, Keep),
            (15_000, Seen, true, Keep),
            (u64::MAX, Seen, true, Keep),
            (u64::MAX, Seen, false, GiveUp),
        ];
        for (silent_ms, sight, computes, expected) in rows {
            let facts = SilenceFacts { silent_ms, sight, computes };
            assert_eq!(answer_to_silence(facts, &policy), expected, "{facts:?}");
        }
    }
}
