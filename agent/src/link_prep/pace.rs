//! When to look at the ports again. Pure: time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

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

/// So often within [`FIGHT_WITHIN`] something had to be changed: somebody else takes it back, and links that flap all night are worse
/// than one that is down.
const FIGHT: usize = 5;

/// A restart makes two or three changes within a minute; a person who tries cables, one now and then.
const FIGHT_WITHIN: Duration = Duration::from_secs(600);

/// How a look ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// All is as it should be.
    Fine,
    /// It is now, and something had to be changed for it.
    Changed,
    /// It is not.
    Failed,
}

/// When the last look was and how it ended.
#[derive(Debug)]
pub struct Pace<T> {
    seen: Option<T>,
    looked_at: Option<Instant>,
    failures: u32,
    changes: VecDeque<Instant>,
}

impl<T> Default for Pace<T> {
    fn default() -> Self {
        Self { seen: None, looked_at: None, failures: 0, changes: VecDeque::new() }
    }
}

impl<T: PartialEq> Pace<T> {
    /// When to look, given what there is to look at now; `None`: only when that changes.
    #[must_use]
    pub fn due(&self, now: Instant, basis: &T) -> Option<Instant> {
        let Some(looked_at) = self.looked_at else { return Some(now) };
        if let Some(until) = self.fights_until(now) {
            return Some(until);
        }
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

    /// Until when nothing is done because somebody else takes it back each time.
    #[must_use]
    pub fn fights_until(&self, now: Instant) -> Option<Instant> {
        let until = *self.changes.front().filter(|_| self.changes.len() == FIGHT)? + FIGHT_WITHIN;
        (until > now).then_some(until)
    }

    /// A person has said what is to become of ports: what was fought over may be over with that.
    pub fn forget_fight(&mut self) {
        self.changes.clear();
    }

    /// It was looked at.
    pub fn looked(&mut self, now: Instant, basis: T, how: Looked) {
        let is_same = self.seen.as_ref() == Some(&basis);
        self.failures = match (how, is_same) {
            (Looked::Fine | Looked::Changed, _) => 0,
            (Looked::Failed, true) => self.failures.saturating_add(1),
            (Looked::Failed, false) => 1,
        };
        if how == Looked::Changed {
            if self.changes.len() == FIGHT {
                self.changes.pop_front();
            }
            self.changes.push_back(now);
        }
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
        pace.looked(t, 1, Looked::Fine);
        assert_eq!(pace.due(t, &1), Some(t + LOOK_EVERY));
        assert_eq!(pace.due(t, &2), Some(t + LEAST_PAUSE), "a change, but not more often than that");
    }

    #[test]
    fn ever_more_seldom_while_it_fails_and_then_not_until_something_changes() {
        let mut t = Instant::now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        pace.looked(t, 1, Looked::Failed);
        while let Some(due) = pace.due(t, &1) {
            waits.push((due - t).as_secs());
            t = due;
            pace.looked(t, 1, Looked::Failed);
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(pace.has_given_up());
        assert_eq!(pace.due(t, &2), Some(t + LEAST_PAUSE));
        pace.looked(t, 2, Looked::Failed);
        assert!(!pace.has_given_up());
        assert_eq!(pace.due(t, &2), Some(t + FIRST_RETRY), "counted anew");
        pace.looked(t, 2, Looked::Fine);
        assert_eq!(pace.due(t, &2), Some(t + LOOK_EVERY));
    }

    #[test]
    fn whoever_takes_it_back_each_time_is_not_fought_all_night() {
        let t = Instant::now();
        let mut pace = Pace::default();
        let mut at = t;
        // Both take turns, as fast as they may.
        for n in 0..5 {
            assert_eq!(pace.fights_until(at), None, "{n}");
            pace.looked(at, n, Looked::Changed);
            at += LEAST_PAUSE;
        }
        assert_eq!(pace.due(at, &9), Some(t + FIGHT_WITHIN), "whatever changes");
        let later = t + FIGHT_WITHIN;
        assert_eq!(pace.fights_until(later), None);
        pace.looked(later, 9, Looked::Changed);
        assert_eq!(pace.due(later, &1), Some(t + LEAST_PAUSE + FIGHT_WITHIN), "one more each time");
        assert_eq!(pace.changes.len(), FIGHT);
    }
}
