//! Going down is quick, going up takes its time: what has failed must hold for a while before it is relied on again, and
//! longer each time it fails; the memory of that fades.

/// Beyond this the waiting time is at its cap anyway, and a night of failures is to be forgotten within some half-lives.
const MOST: f64 = 10.0;

/// Grows by one with each failure, and halves with each half-life.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Penalty {
    amount: f64,
    at_mono_ms: u64,
}

impl Penalty {
    /// What is left of it.
    pub(super) fn amount(&self, mono_ms: u64, half_life_ms: u64) -> f64 {
        let half_lives = mono_ms.saturating_sub(self.at_mono_ms) as f64 / half_life_ms.max(1) as f64;
        self.amount * (-half_lives).exp2()
    }

    /// One more failure.
    pub(super) fn add(&mut self, mono_ms: u64, half_life_ms: u64) {
        *self = Self { amount: (self.amount(mono_ms, half_life_ms) + 1.0).min(MOST), at_mono_ms: mono_ms };
    }

    /// How long something must hold now: `base_ms`, doubled for each failure that is not forgotten, up to `most_ms`.
    pub(super) fn settle_ms(&self, mono_ms: u64, half_life_ms: u64, base_ms: u64, most_ms: u64) -> u64 {
        let factor = self.amount(mono_ms, half_life_ms).exp2();
        // Both are small numbers of milliseconds: no precision is lost, and a cast cannot overflow.
        ((base_ms as f64 * factor) as u64).min(most_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    #[test]
    fn each_failure_doubles_the_wait_and_a_half_life_takes_half_of_the_doublings_back() {
        let mut penalty = Penalty::default();
        let settle_s =
            |penalty: &Penalty, at: u64| penalty.settle_ms(at, 15 * MINUTE_MS, 5_000, 600_000) / 1_000;
        assert_eq!(settle_s(&penalty, 0), 5);
        for expected in [10, 20, 40, 80] {
            penalty.add(0, 15 * MINUTE_MS);
            assert_eq!(settle_s(&penalty, 0), expected);
        }
        assert_eq!(settle_s(&penalty, 15 * MINUTE_MS), 20);
        assert_eq!(settle_s(&penalty, 30 * MINUTE_MS), 10);
        assert_eq!(settle_s(&penalty, 24 * 60 * MINUTE_MS), 5);
        for _ in 0..1_000 {
            penalty.add(0, 15 * MINUTE_MS);
        }
        assert_eq!(settle_s(&penalty, 0), 600, "capped");
        assert_eq!(settle_s(&penalty, 60 * MINUTE_MS), 7, "and forgotten the same night");
    }

    /// However the failures come, what is tried each time it has settled is tried a bounded number of times a night.
    #[test]
    fn a_night_of_flapping_costs_a_bounded_number_of_tries() {
        for period_ms in [10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_200_000] {
            let (mut penalty, mut tries) = (Penalty::default(), 0);
            for start in (0..8 * 60 * MINUTE_MS).step_by(period_ms) {
                penalty.add(start, 30 * MINUTE_MS);
                let up_ms = period_ms as u64 / 2;
                let at = start + up_ms;
                tries += u32::from(penalty.settle_ms(at, 30 * MINUTE_MS, 60_000, 7_200_000) <= up_ms);
            }
            assert!(tries <= 24, "{tries} tries when it fails every {} s", period_ms / 1_000);
        }
    }
}
