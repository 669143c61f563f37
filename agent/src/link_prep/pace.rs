//! When to look at the ports again. Pure: time is an argument.

use std::time::{Duration, Instant};

/// With nothing to tell that anything has changed: another program may have taken a port, or its address.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);

/// However often something changes: a port that flaps must not keep a processor busy.
const LEAST_PAUSE: Duration = Duration::from_secs(2);

/// After a failure, doubled with each that follows.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// However often it failed: addresses come minutes late after a restart.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// Failures after which only a change is a reason to try again: 5 s, 10 s and so on make half an hour.
const MOST_FAILURES: u32 = 10;

/// When the last look was and how it ended.
#[derive(Debug)]
pub struct Pace<T> {
    seen: Option<T>,
    looked_at: Option<Instant>,
    failures: u32,
}

impl<T> Default for Pace<T> {
    fn default() -> Self {
        Self { seen: None, looked_at: None, failures: 0 }
    }
}

impl<T: PartialEq> Pace<T> {
    /// When to look, given what there is to look at now; `None`: only when that changes.
    #[must_use]
    pub fn due(&self, now: Instant, basis: &T) -> Option<Instant> {
        let Some(looked_at) = self.looked_at else { return Some(now) };
        if self.seen.as_ref() != Some(basis) {
            return Some(looked_at + LEAST_PAUSE);
        }
        match self.failures {
            0 => Some(looked_at + LOOK_EVERY),
            failures if failures >= MOST_FAILURES => None,
            failures => {
                let retry = FIRST_RETRY * 2_u32.saturating_pow(failures - 1);
                Some(looked_at + retry.min(LONGEST_RETRY))
            }
        }
    }

    /// It was looked at, and that went well or not.
    pub fn looked(&mut self, now: Instant, basis: T, went_well: bool) {
        let is_same = self.seen.as_ref() == Some(&basis);
        self.failures = match (went_well, is_same) {
            (true, _) => 0,
            (false, true) => self.failures.saturating_add(1),
            (false, false) => 1,
        };
        self.seen = Some(basis);
        self.looked_at = Some(now);
    }

    /// Whether it is not tried any more until something changes.
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        self.failures >= MOST_FAILURES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_regularly_and_soon_after_a_change() {
        let t = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(t, &1), Some(t));
        pace.looked(t, 1, true);
        assert_eq!(pace.due(t, &1), Some(t + LOOK_EVERY));
        assert_eq!(pace.due(t, &2), Some(t + LEAST_PAUSE), "a change, but not more often than that");
    }

    #[test]
    fn ever_more_seldom_while_it_fails_and_then_not_until_something_changes() {
        let mut t = Instant::now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        pace.looked(t, 1, false);
        while let Some(due) = pace.due(t, &1) {
            waits.push((due - t).as_secs());
            t = due;
            pace.looked(t, 1, false);
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(pace.has_given_up());
        assert_eq!(pace.due(t, &2), Some(t + LEAST_PAUSE));
        pace.looked(t, 2, false);
        assert!(!pace.has_given_up());
        assert_eq!(pace.due(t, &2), Some(t + FIRST_RETRY), "counted anew");
        pace.looked(t, 2, true);
        assert_eq!(pace.due(t, &2), Some(t + LOOK_EVERY));
    }
}
