//! How long to wait before dialling again. The only place that knows the `backoff` crate.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};

/// A controller that restarts is back within seconds: the first tries are quick.
const FIRST: Duration = Duration::from_millis(100);

/// A dial on loopback costs next to nothing, and a night's work waits: never long.
const CAP: Duration = Duration::from_secs(5);

/// A session that held this long was a good one: the next failure starts from the beginning.
const STABLE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Retry(ExponentialBackoff);

impl Default for Retry {
    fn default() -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(FIRST)
                .with_multiplier(2.0)
                // Half to one and a half: agents of a cluster do not come back all at the same moment.
                .with_randomization_factor(0.5)
                .with_max_interval(CAP)
                .with_max_elapsed_time(None)
                .build(),
        )
    }
}

impl Retry {
    /// How long to wait after a session that lasted this long.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= STABLE {
            self.reset();
        }
        // Without a maximum of elapsed time there is always a next wait.
        self.0.next_backoff().unwrap_or(CAP).min(CAP)
    }

    /// The next wait is the first again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over_after_a_good_session() {
        let mut retry = Retry::default();
        let first = retry.after(Duration::ZERO);
        assert!((FIRST / 2..=FIRST * 3 / 2 + Duration::from_millis(1)).contains(&first), "{first:?}");
        let later: Vec<_> = (0..50).map(|_| retry.after(Duration::ZERO)).collect();
        assert!(later.iter().all(|wait| *wait <= CAP));
        assert!(later[20..].iter().all(|wait| *wait >= CAP / 2), "{later:?}");
        assert!(retry.after(STABLE) <= FIRST * 2);
    }
}
