//! What this cluster has learned of a model by running it. Plain data, kept across restarts.

use serde::{Deserialize, Serialize};

use super::{link::Backend, plan::Mode};

/// Ways of running that are remembered of a model: three modes, three backends and a few sizes of gangs.
const MOST_MEASUREMENTS: usize = 16;

/// Tokens of a known answer that are kept; the canary asks for eight.
const MOST_ANSWER_TOKENS: usize = 256;

/// How much of the newest measurement goes into what is remembered: a night with other rows, or a busy machine, shifts it
/// without deciding it.
const NEWEST_PERCENT: u64 = 30;

/// A model by the fingerprint of its files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LearnedModel {
    /// Equal on nodes with the same files.
    pub fingerprint: String,
    /// When anything was learned last.
    pub updated_unix_ms: u64,
    /// What one node alone answers to the canary prompt.
    #[serde(default)]
    pub known_answer: Option<KnownAnswer>,
    /// How fast it ran.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
}

/// The greedy answer of one node alone to the canary prompt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KnownAnswer {
    /// Token numbers.
    pub tokens: Vec<u32>,
    /// Runtime and hardware it was computed with: elsewhere a token on a knife's edge may fall the other way.
    pub platform: String,
}

/// How fast a model ran once on this cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// In which mode.
    pub mode: Mode,
    /// Over what; `None` for independent workers.
    pub backend: Option<Backend>,
    /// Ranks of a gang; 1 for an independent worker.
    pub ranks: u32,
    /// Of one worker, or one gang.
    pub tokens_per_s: u64,
}

impl LearnedModel {
    /// Of which nothing is known yet.
    #[must_use]
    pub fn new(fingerprint: &str) -> Self {
        Self {
            fingerprint: fingerprint.to_owned(),
            updated_unix_ms: 0,
            known_answer: None,
            measurements: Vec::new(),
        }
    }

    /// Takes a measurement in; returns whether what is remembered has changed.
    pub fn measure(&mut self, found: Measurement) -> bool {
        let same = |known: &Measurement| {
            (known.mode, known.backend, known.ranks) == (found.mode, found.backend, found.ranks)
        };
        let Some(known) = self.measurements.iter_mut().find(|known| same(known)) else {
            let is_new = self.measurements.len() < MOST_MEASUREMENTS;
            if is_new {
                self.measurements.push(found);
            }
            return is_new;
        };
        let joined =
            (known.tokens_per_s * (100 - NEWEST_PERCENT) + found.tokens_per_s * NEWEST_PERCENT) / 100;
        core::mem::replace(&mut known.tokens_per_s, joined) != joined
    }

    /// Takes an answer in when there is none, or one from another platform; returns whether it did.
    pub fn answer(&mut self, found: KnownAnswer) -> bool {
        let is_known = self.known_answer.as_ref().is_some_and(|known| known.platform == found.platform);
        if is_known || found.tokens.is_empty() || found.tokens.len() > MOST_ANSWER_TOKENS {
            return false;
        }
        self.known_answer = Some(found);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_shifts_what_is_remembered_and_does_not_replace_it() {
        let speed = |mode, ranks, tokens_per_s| Measurement { mode, backend: None, ranks, tokens_per_s };
        let mut model = LearnedModel::new("f");
        assert!(model.measure(speed(Mode::Independent, 1, 100)));
        assert!(model.measure(speed(Mode::Independent, 1, 200)));
        assert!(!model.measure(speed(Mode::Independent, 1, 130)), "nothing new");
        assert!(model.measure(speed(Mode::Tensor, 2, 50)));
        assert_eq!(model.measurements, [speed(Mode::Independent, 1, 130), speed(Mode::Tensor, 2, 50)]);
        for ranks in 3..100 {
            model.measure(speed(Mode::Tensor, ranks, 1));
        }
        assert_eq!(model.measurements.len(), MOST_MEASUREMENTS);
    }

    #[test]
    fn the_first_answer_of_a_platform_is_kept() {
        let answer = |tokens: &[u32], platform: &str| KnownAnswer {
            tokens: tokens.to_vec(),
            platform: platform.to_owned(),
        };
        let mut model = LearnedModel::new("f");
        assert!(!model.answer(answer(&[], "a")));
        assert!(model.answer(answer(&[1, 2], "a")));
        assert!(!model.answer(answer(&[9, 9], "a")), "who is wrong is not ours to guess");
        assert!(model.answer(answer(&[9, 9], "b")));
        assert!(!model.answer(answer(&[0; 257], "c")), "bounded");
    }
}
