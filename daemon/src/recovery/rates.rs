//! Speeds, smoothed for people: how fast rows and tokens go by.

use std::collections::VecDeque;

/// Rows a second of a job, over the last minutes. Bounded: one sample each [`SAMPLE_EVERY_MS`], [`SAMPLES`] of them.
#[derive(Clone, Debug, Default)]
pub(super) struct RowRate {
    samples: VecDeque<(u64, u64)>,
    /// Since when nobody is at work on it.
    idle_since_mono_ms: Option<u64>,
}

/// Often enough that a short job shows a speed at all.
const SAMPLE_EVERY_MS: u64 = 1_000;
/// Five minutes: long enough to smooth batches that end together.
const SAMPLES: usize = 300;
/// What was seen for less time says nothing about a night: batches begin and end together.
const SETTLED_MS: u64 = 60_000;
/// A break that is longer is none between two tries of the same worker, and the time in it is not part of the speed.
const BREAK_MS: u64 = 60_000;

impl RowRate {
    /// Notes how many rows are done.
    pub(super) fn note(&mut self, mono_ms: u64, rows_done: u64) {
        if let Some((_, before)) = self.samples.back_mut().filter(|(at, _)| mono_ms < *at + SAMPLE_EVERY_MS) {
            // The rest of a batch that ended together: it took no time after its first row.
            *before = rows_done;
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((mono_ms, rows_done));
    }

    /// Rows a second, when there is anything to base it on.
    pub(super) fn rows_per_s(&self, mono_ms: u64, rows_done: u64) -> Option<f64> {
        let (since_ms, before) = *self.samples.front()?;
        let elapsed_ms = mono_ms.checked_sub(since_ms).filter(|elapsed| *elapsed >= SAMPLE_EVERY_MS)?;
        let rows = rows_done.checked_sub(before).filter(|rows| *rows > 0)?;
        Some(rows as f64 * 1e3 / elapsed_ms as f64)
    }

    /// The same, once there is enough to base a forecast on.
    pub(super) fn settled_rows_per_s(&self, mono_ms: u64, rows_done: u64) -> Option<f64> {
        let (since_ms, _) = *self.samples.front()?;
        (mono_ms.saturating_sub(since_ms) >= SETTLED_MS)
            .then(|| self.rows_per_s(mono_ms, rows_done))
            .flatten()
    }

    /// Notes whether anybody is at work; after a long break it starts anew.
    pub(super) fn note_work(&mut self, mono_ms: u64, is_at_work: bool) {
        if is_at_work {
            self.idle_since_mono_ms = None;
            return;
        }
        let since_ms = *self.idle_since_mono_ms.get_or_insert(mono_ms);
        if mono_ms.saturating_sub(since_ms) >= BREAK_MS {
            self.reset();
        }
    }

    /// Starts anew, after a pause during which nothing could be done.
    pub(super) fn reset(&mut self) {
        self.samples.clear();
    }
}

/// Tokens a second of a worker: an exponentially weighted mean over its running count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TokenRate {
    last: Option<(u64, u64)>,
    tokens_per_s: f64,
}

/// Time constant: a change shows within seconds, a single slow step does not.
const TIME_CONSTANT_MS: f64 = 5_000.0;

impl TokenRate {
    /// Notes the count of tokens generated so far.
    pub(super) fn note(&mut self, mono_ms: u64, tokens: u64) {
        if let Some((since_ms, before)) = self.last {
            let elapsed_ms = mono_ms.saturating_sub(since_ms);
            if elapsed_ms < 100 {
                return;
            }
            let speed = tokens.saturating_sub(before) as f64 * 1e3 / elapsed_ms as f64;
            let keep = (-(elapsed_ms as f64) / TIME_CONSTANT_MS).exp();
            self.tokens_per_s = if self.tokens_per_s == 0.0 {
                speed
            } else {
                self.tokens_per_s * keep + speed * (1.0 - keep)
            };
        }
        self.last = Some((mono_ms, tokens));
    }

    /// Tokens a second; 0 when nothing was heard for long.
    pub(super) fn tokens_per_s(&self, mono_ms: u64) -> f64 {
        match self.last {
            Some((at, _)) if mono_ms.saturating_sub(at) < 10_000 => self.tokens_per_s,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_job_shows_its_speed() {
        let mut rate = RowRate::default();
        assert_eq!(rate.rows_per_s(0, 0), None);
        rate.note(0, 0);
        assert_eq!(rate.settled_rows_per_s(59_000, 236), None);
        assert_eq!(rate.settled_rows_per_s(60_000, 240), Some(4.0));
        for second in 0..1_000_u64 {
            rate.note(second * 1_000, second * 4);
        }
        assert_eq!(rate.rows_per_s(1_000_000, 4_000).map(f64::round), Some(4.0));
        assert_eq!(rate.samples.len(), SAMPLES);
        rate.reset();
        assert_eq!(rate.rows_per_s(1_000_000, 4_000), None);
    }

    #[test]
    fn rows_that_end_together_are_counted_with_the_time_they_took() {
        let mut rate = RowRate::default();
        for batch in 1..=3_u64 {
            for row in 1..=8 {
                rate.note(batch * 120_000 + row * 100, (batch - 1) * 8 + row);
            }
        }
        assert_eq!(rate.settled_rows_per_s(360_100, 24), Some(16.0 / 240.0), "two batches in four minutes");
    }

    #[test]
    fn a_short_break_counts_and_a_long_one_begins_anew() {
        let mut rate = RowRate::default();
        rate.note(0, 0);
        rate.note(100_000, 100);
        rate.note_work(100_000, false);
        rate.note_work(159_999, false);
        rate.note_work(160_000, true);
        assert_eq!(rate.settled_rows_per_s(200_000, 100), Some(0.5));
        rate.note_work(200_000, false);
        rate.note_work(260_000, false);
        assert_eq!(rate.settled_rows_per_s(260_000, 100), None);
    }

    #[test]
    fn a_worker_shows_its_speed_and_loses_it_when_silent() {
        let mut rate = TokenRate::default();
        for tick in 0..100_u64 {
            rate.note(tick * 250, tick * 25);
        }
        assert_eq!(rate.tokens_per_s(99 * 250).round(), 100.0);
        assert_eq!(rate.tokens_per_s(99 * 250 + 10_000), 0.0);
    }
}
