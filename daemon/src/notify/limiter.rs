//! How often somebody is told. Pure: takes the time as an argument.
//!
//! Messages that come within the interval after one that went out are folded: when the interval is over, the one of them
//! that matters most goes out, the newest of those, and says how many were left out. So the last word of a burst is never
//! later than the interval, and a night of failures is a bounded number of messages.

use std::collections::VecDeque;

use super::Message;

/// Messages that wait at most; past it the oldest of those that matter least is left out.
const MOST_WAITING: usize = 32;

/// Holds messages back.
#[derive(Clone, Debug)]
pub struct Limiter {
    min_interval_ms: u64,
    last_mono_ms: Option<u64>,
    waiting: VecDeque<Message>,
    left_out: u64,
}

impl Limiter {
    /// At most one message in this time; 0 lets every one through.
    #[must_use]
    pub fn new(min_interval_ms: u64) -> Self {
        Self { min_interval_ms, last_mono_ms: None, waiting: VecDeque::new(), left_out: 0 }
    }

    /// Another time, from now on.
    pub fn set_min_interval_ms(&mut self, ms: u64) {
        self.min_interval_ms = ms;
    }

    /// Takes a message in.
    pub fn push(&mut self, message: Message) {
        if self.waiting.len() >= MOST_WAITING {
            let least = self.waiting.iter().map(|waiting| waiting.severity).min();
            let oldest = self.waiting.iter().position(|waiting| Some(waiting.severity) == least);
            oldest.and_then(|at| self.waiting.remove(at));
            self.left_out += 1;
        }
        self.waiting.push_back(message);
    }

    /// Counts messages that were lost before they came here.
    pub fn note_left_out(&mut self, messages: u64) {
        self.left_out += messages;
    }

    /// How long until [`take`](Self::take) gives a message; `None` while none waits.
    #[must_use]
    pub fn due_in_ms(&self, mono_ms: u64) -> Option<u64> {
        let due_mono_ms = self.last_mono_ms.map_or(0, |last| last.saturating_add(self.min_interval_ms));
        (!self.waiting.is_empty()).then(|| due_mono_ms.saturating_sub(mono_ms))
    }

    /// The message to deliver now, if it is time for one.
    pub fn take(&mut self, mono_ms: u64) -> Option<Message> {
        if self.due_in_ms(mono_ms)? > 0 {
            return None;
        }
        let mut message = self.waiting.pop_front()?;
        if self.min_interval_ms > 0 {
            for other in self.waiting.drain(..) {
                self.left_out += 1;
                if other.severity >= message.severity {
                    message = other;
                }
            }
        }
        self.last_mono_ms = Some(mono_ms);
        message.left_out = std::mem::take(&mut self.left_out);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Severity, notify::Kind};

    fn message(text: &str, severity: Severity) -> Message {
        Message {
            kind: Kind::JobCompleted,
            severity,
            unix_ms: 0,
            node: None,
            job: None,
            text: text.to_owned(),
            left_out: 0,
        }
    }

    /// Plays messages (when, text) and looks each second until everything has gone out: when, text, left out.
    fn played(min_interval_s: u64, messages: &[(u64, &str)]) -> Vec<(u64, String, u64)> {
        let mut limiter = Limiter::new(min_interval_s * 1_000);
        let mut out = Vec::new();
        for second in 0..1_000 {
            for (_, text) in messages.iter().filter(|(at, _)| *at == second) {
                let severity = if text.starts_with('!') { Severity::Error } else { Severity::Info };
                limiter.push(message(text, severity));
            }
            while let Some(message) = limiter.take(second * 1_000) {
                out.push((second, message.text, message.left_out));
            }
        }
        out
    }

    #[test]
    fn the_table_of_bursts() {
        let out = |at: u64, text: &str, left_out| (at, text.to_owned(), left_out);
        let rows = [
            (60, vec![], vec![]),
            (60, vec![(5, "a")], vec![out(5, "a", 0)]),
            (60, vec![(5, "a"), (65, "b")], vec![out(5, "a", 0), out(65, "b", 0)]),
            (60, vec![(5, "a"), (6, "b")], vec![out(5, "a", 0), out(65, "b", 0)]),
            // The newest of those that matter most.
            (60, vec![(5, "a"), (6, "b"), (7, "c"), (8, "d")], vec![out(5, "a", 0), out(65, "d", 2)]),
            (60, vec![(5, "a"), (6, "!b"), (7, "!c"), (8, "d")], vec![out(5, "a", 0), out(65, "!c", 2)]),
            (60, vec![(5, "a"), (5, "!b")], vec![out(5, "!b", 1)]),
            // What was left out is told once.
            (
                60,
                vec![(5, "a"), (6, "b"), (7, "c"), (100, "d")],
                vec![out(5, "a", 0), out(65, "c", 1), out(125, "d", 0)],
            ),
            (0, vec![(5, "a"), (5, "b"), (6, "c")], vec![out(5, "a", 0), out(5, "b", 0), out(6, "c", 0)]),
        ];
        for (interval, messages, expected) in rows {
            assert_eq!(played(interval, &messages), expected, "{interval} s, {messages:?}");
        }
    }

    #[test]
    fn a_night_of_failures_is_a_bounded_number_of_messages() {
        let burst: Vec<(u64, &str)> = (0..999).map(|second| (second, "!again")).collect();
        let out = played(60, &burst);
        assert_eq!(out.len(), 17);
        let left_out: u64 = out.iter().map(|(_, _, left_out)| left_out).sum();
        assert_eq!(out.len() as u64 + left_out, out[16].0 + 1, "all up to the last one are accounted for");
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_lost_is_counted() {
        let mut limiter = Limiter::new(0);
        for number in 0..1_000 {
            limiter.push(message(&number.to_string(), Severity::Info));
        }
        limiter.note_left_out(5);
        let first = limiter.take(0).unwrap();
        assert_eq!((first.text.as_str(), first.left_out), ("968", 968 + 5));
        assert_eq!(limiter.take(0).unwrap().left_out, 0);
        assert_eq!(limiter.waiting.len(), MOST_WAITING - 2);
        limiter.set_min_interval_ms(1_000);
        assert_eq!(limiter.due_in_ms(400), Some(600));
    }
}
