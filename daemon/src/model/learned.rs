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
    /// A step that reads prompts, by how many tokens it reads: from a power of two up to the next. 0 where none was seen.
    #[serde(default)]
    pub prefill_ms: [u32; PREFILL_SIZES],
    /// From how many observations.
    pub prefill_seen: u32,
}

/// Powers of two that a step's tokens are told apart by: all from 32,768 on are one.
pub const PREFILL_SIZES: usize = 16;

fn prefill_size(tokens: u64) -> usize {
    (tokens.max(1).ilog2() as usize).min(PREFILL_SIZES - 1)
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
    /// A step that read prompts.
    Prefill {
        /// So many tokens of them.
        tokens: u64,
        /// So long.
        ms: u64,
    },
}

/// How much of what is remembered is forgotten with each faster observation, of 100.
const FORGOTTEN_PERCENT: u64 = 2;

impl Pace {
    fn new(way: Way) -> Self {
        Self {
            way,
            load_ms: 0,
            decode_step_us: 0,
            decode_seen: 0,
            prefill_ms: [0; PREFILL_SIZES],
            prefill_seen: 0,
        }
    }

    fn take(&mut self, lap: Lap) {
        match lap {
            Lap::Load { ms } => self.load_ms = slower_at_once(self.load_ms, ms),
            Lap::Decode { us } => {
                self.decode_seen = self.decode_seen.saturating_add(1);
                self.decode_step_us = slower_at_once(self.decode_step_us, us);
            }
            Lap::Prefill { tokens, ms } => {
                self.prefill_seen = self.prefill_seen.saturating_add(1);
                let known = &mut self.prefill_ms[prefill_size(tokens)];
                // What took no measurable time was seen all the same.
                let found = slower_at_once(u64::from(*known), ms.max(1));
                *known = u32::try_from(found).unwrap_or(u32::MAX);
            }
        }
    }

    /// How long a step takes that reads so many tokens; `None` where nothing is known of it. A step takes no less than one that
    /// reads fewer. Of more tokens than were ever read at once, each takes as long as those of the largest step that was seen,
    /// which is too long: a step takes its time however few it reads.
    #[must_use]
    pub fn prefill_step_ms(&self, tokens: u64) -> Option<u64> {
        let largest = self.prefill_ms.iter().rposition(|ms| *ms > 0)?;
        let size = prefill_size(tokens);
        let slowest = self.prefill_ms[..=size.min(largest)].iter().copied().max().map(u64::from)?;
        let slowest = if slowest == 0 { u64::from(self.prefill_ms[largest]) } else { slowest };
        Some(if size > largest { slowest.saturating_mul(tokens) >> largest } else { slowest })
    }
}

fn slower_at_once(known: u64, found: u64) -> u64 {
    if found >= known {
        return found;
    }
    known.saturating_sub((known - found).saturating_mul(FORGOTTEN_PERCENT) / 100)
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
            || before
                .prefill_ms
                .iter()
                .zip(pace.prefill_ms)
                .any(|(was, is)| differs((*was).into(), is.into()))
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
        model.pass(way, Lap::Prefill { tokens: 100, ms: 7 });
        let pace = model.pace(way).unwrap();
        assert_eq!((pace.load_ms, pace.prefill_step_ms(100), pace.prefill_seen), (5, Some(7), 1));
        for ranks in 2..100 {
            model.pass(Way { ranks, ..way }, Lap::Load { ms: 1 });
        }
        assert_eq!(model.paces.len(), MOST_MEASUREMENTS);
    }

    /// Short prompts say nothing of how long each token of a long one takes.
    #[test]
    fn steps_that_read_prompts_are_known_by_their_size() {
        let way = Way { mode: Mode::Independent, backend: None, ranks: 1 };
        let mut pace = Pace::new(way);
        assert_eq!(pace.prefill_step_ms(100), None);
        let mut read = |tokens, ms| {
            pace.take(Lap::Prefill { tokens, ms });
            pace
        };
        let known = read(5, 200);
        assert_eq!(known.prefill_step_ms(5), Some(200));
        assert_eq!(known.prefill_step_ms(1), Some(200), "fewer take no longer");
        assert_eq!(known.prefill_step_ms(40), Some(2_000), "as if each of four took 200 ms");
        let known = read(100, 300);
        assert_eq!((known.prefill_step_ms(5), known.prefill_step_ms(64)), (Some(200), Some(300)));
        assert_eq!(known.prefill_step_ms(20), Some(200), "between the two");
        assert_eq!(known.prefill_step_ms(2_048), Some(9_600));
        let known = read(2_048, 4_000);
        assert_eq!((known.prefill_step_ms(2_048), known.prefill_step_ms(100)), (Some(4_000), Some(300)));
        let known = read(3, 5_000);
        assert_eq!(known.prefill_step_ms(2_048), Some(5_000), "more take no less");
        let known = read(u64::MAX, u64::MAX);
        assert_eq!(known.prefill_step_ms(u64::MAX), Some(u32::MAX.into()));
        let known = read(0, 0);
        assert_eq!(known.prefill_step_ms(1), Some(1));
    }

    /// What was written before sizes were told apart.
    #[test]
    fn an_older_record_is_read_and_says_nothing_of_prompts() {
        let mut pace =
            serde_json::to_value(Pace::new(Way { mode: Mode::Independent, backend: None, ranks: 1 }))
                .unwrap();
        pace.as_object_mut().unwrap().remove("prefill_ms");
        pace["prefill_token_ns"] = 270_000_000.into();
        pace["prefill_seen"] = 100.into();
        let pace: Pace = serde_json::from_value(pace).unwrap();
        assert_eq!((pace.prefill_seen, pace.prefill_step_ms(100)), (100, None));
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
