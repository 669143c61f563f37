//! Section `[notify]`: who is told what while nobody looks.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::notify::Kind;

/// Section `[notify]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notify {
    /// A program and its arguments, run for each message, which it gets as one JSON object on standard input; empty: none.
    pub command: Vec<String>,
    /// An address that each message is posted to, by the system's curl; empty: none.
    pub webhook: String,
    /// What is told.
    pub on: Vec<Kind>,
    /// Between two messages; what comes in between is folded into the next one. 0: every message is told.
    pub min_interval_s: u64,
    /// How long a delivery may take.
    pub timeout_s: u64,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            webhook: String::new(),
            on: Kind::DEFAULT.to_vec(),
            // A night in which everything fails is a handful of messages, and a job's end is not late.
            min_interval_s: 60,
            // A mail or a chat takes seconds; a machine that is busy with a model takes longer to start a program.
            timeout_s: 30,
        }
    }
}

/// A delivery that hangs keeps the messages after it from going out.
const MOST_TIMEOUT_S: u64 = 600;

/// Longer than a night is never.
const MOST_INTERVAL_S: u64 = 24 * 3_600;

impl Notify {
    /// Whether anybody is told anything.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let somebody = !self.command.is_empty() || !self.webhook.is_empty();
        somebody && !self.on.is_empty()
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        let refuse = |key, value: String, why| Err(Error::Value { key, value, why });
        if self.command.first().is_some_and(|program| program.trim().is_empty()) {
            let why = "its first element is the program, for example [\"/usr/local/bin/tell-me\"]";
            return refuse("notify.command", format!("{:?}", self.command), why);
        }
        let is_address = (self.webhook.starts_with("https://") || self.webhook.starts_with("http://"))
            && !self.webhook.contains(|c: char| c.is_whitespace() || c.is_control());
        if !self.webhook.is_empty() && !is_address {
            let why = "it is an address that begins with https:// or http://";
            return refuse("notify.webhook", self.webhook.clone(), why);
        }
        if !(1..=MOST_TIMEOUT_S).contains(&self.timeout_s) {
            return refuse("notify.timeout_s", self.timeout_s.to_string(), "it is 1 to 600 seconds");
        }
        if self.min_interval_s > MOST_INTERVAL_S {
            let why = "it is at most a day, 86400 seconds";
            return refuse("notify.min_interval_s", self.min_interval_s.to_string(), why);
        }
        Ok(())
    }
}
