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
    /// How long its steps take, by way of running.
    #[serde(default)]
    pub paces: Vec<Pace>,
}

/// How a model is run, as far as its steps differ for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Way {
    /// In which mode.
    pub mode: Mode,
    /// Over what; `None` for independent workers.
    pub backend: Option<Backend>,
    /// Ranks of a gang; 1 for an independent worker.
    pub ranks: u32,
}

/// How long the parts of a worker's life take: what they took at the slowest lately. Slower counts at once, faster little by
/// little, so that one quick batch does not make the next one look hung.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pace {
    /// Of which way.
    pub way: Way,
    /// Loading; 0 while not known.
    pub load_ms: u64,
    /// One step of generation.
    pub decode_step_us: u64,
    /// From how many observations.
    pub decode_seen: u32,
    /// A token of a prompt.
    pub prefill_token_ns: u64,
    /// From how many observations.
    pub prefill_seen: u32,
}

/// One observation of a pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lap {
    /// Loading took so long.
    Load {
        /// So long.
        ms: u64,
    },
    /// A step of generation.
    Decode {
        /// So long.
        us: u64,
    },
    /// A token of a prompt.
    Prefill {
        /// So long.
        ns: u64,
    },
}

/// How much of what is remembered is forgotten with each faster observation, of 100.
const FORGOTTEN_PERCENT: u64 = 2;

impl Pace {
    fn new(way: Way) -> Self {
        Self { way, load_ms: 0, decode_step_us: 0, decode_seen: 0, prefill_token_ns: 0, prefill_seen: 0 }
    }

    fn take(&mut self, lap: Lap) {
        let (known, found) = match lap {
            Lap::Load { ms } => (&mut self.load_ms, ms),
            Lap::Decode { us } => {
                self.decode_seen = self.decode_seen.saturating_add(1);
                (&mut self.decode_step_us, us)
            }
            Lap::Prefill { ns } => {
                self.prefill_seen = self.prefill_seen.saturating_add(1);
                (&mut self.prefill_token_ns, ns)
            }
        };
        *known = if found >= *known {
            found
        } else {
            (*known).saturating_sub((*known - found).saturating_mul(FORGOTTEN_PERCENT) / 100)
        };
    }
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
            paces: Vec::new(),
        }
    }

    /// How long the steps of this way take, as far as it is known.
    #[must_use]
    pub fn pace(&self, way: Way) -> Option<&Pace> {
        self.paces.iter().find(|pace| pace.way == way)
    }

    /// Takes an observation in; returns whether what is remembered has changed by enough to be written down.
    pub fn pass(&mut self, way: Way, lap: Lap) -> bool {
        let at = match self.paces.iter().position(|pace| pace.way == way) {
            Some(at) => at,
            None if self.paces.len() < MOST_MEASUREMENTS => {
                self.paces.push(Pace::new(way));
                self.paces.len() - 1
            }
            None => return false,
        };
        let pace = &mut self.paces[at];
        let before = *pace;
        pace.take(lap);
        let differs = |before: u64, after: u64| before.abs_diff(after) > before / 5;
        // The count matters until it is enough; after that what was seen does.
        let seen = |pace: &Pace| (pace.decode_seen / 16).min(2) + (pace.prefill_seen / 4).min(2);
        differs(before.load_ms, pace.load_ms)
            || differs(before.decode_step_us, pace.decode_step_us)
            || differs(before.prefill_token_ns, pace.prefill_token_ns)
            || seen(&before) != seen(pace)
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
    fn slower_counts_at_once_and_faster_little_by_little() {
        let way = Way { mode: Mode::Independent, backend: None, ranks: 1 };
        let mut model = LearnedModel::new("f");
        assert!(model.pass(way, Lap::Decode { us: 1_000 }));
        assert!(!model.pass(way, Lap::Decode { us: 1_100 }), "not worth a write");
        assert!(model.pass(way, Lap::Decode { us: 9_000 }));
        assert_eq!(model.pace(way).unwrap().decode_step_us, 9_000);
        for _ in 0..50 {
            model.pass(way, Lap::Decode { us: 1_000 });
        }
        let after = model.pace(way).unwrap().decode_step_us;
        assert!((3_000..5_000).contains(&after), "{after}");
        model.pass(way, Lap::Load { ms: 5 });
        model.pass(way, Lap::Prefill { ns: 7 });
        let pace = model.pace(way).unwrap();
        assert_eq!((pace.load_ms, pace.prefill_token_ns, pace.prefill_seen), (5, 7, 1));
        for ranks in 2..100 {
            model.pass(Way { ranks, ..way }, Lap::Load { ms: 1 });
        }
        assert_eq!(model.paces.len(), MOST_MEASUREMENTS);
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
