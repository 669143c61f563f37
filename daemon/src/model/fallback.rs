//! When a job's rows are answered by a smaller model than its own.

use std::{fmt, str::FromStr};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// When a job's fallback model is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackPolicy {
    /// Not at all: the job waits.
    Never,
    /// When its own model could not run anywhere for so long.
    AfterMs(u64),
    /// As soon as its own model cannot run anywhere.
    AtOnce,
}

/// A month: whoever waits longer means `never`.
const MOST_MS: u64 = 31 * 24 * 3_600_000;

impl Default for FallbackPolicy {
    /// A Mac that reboots, or a cable that was moved, is back by then; a night that waits longer is better spent.
    fn default() -> Self {
        Self::AfterMs(10 * 60_000)
    }
}

/// It is none of the words, nor a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no fallback policy: it is `never`, `at-once`, or how long to wait, like `10m` or `after 1h30m` (at most 31 days)"
)]
pub struct ParseFallbackError(String);

impl FromStr for FallbackPolicy {
    type Err = ParseFallbackError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseFallbackError(text.to_owned());
        match text.trim() {
            "never" => Ok(Self::Never),
            "at-once" => Ok(Self::AtOnce),
            other => {
                let time = other.strip_prefix("after").unwrap_or(other).trim();
                let time: SignedDuration = time.parse().map_err(|_| refuse())?;
                match u64::try_from(time.as_millis()) {
                    Ok(0) => Ok(Self::AtOnce),
                    Ok(ms @ ..=MOST_MS) => Ok(Self::AfterMs(ms)),
                    _ => Err(refuse()),
                }
            }
        }
    }
}

impl fmt::Display for FallbackPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::AtOnce => f.write_str("at-once"),
            Self::AfterMs(ms) => {
                let time = SignedDuration::from_millis(i64::try_from(*ms).unwrap_or(i64::MAX));
                write!(f, "after {time:#}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_times_are_read_and_written() {
        let cases = [
            ("never", "never"),
            ("at-once", "at-once"),
            ("0s", "at-once"),
            ("10m", "after 10m"),
            ("after 90 min", "after 1h 30m"),
            ("after 1h30m", "after 1h 30m"),
            ("PT15M", "after 15m"),
        ];
        for (text, written) in cases {
            let policy: FallbackPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), written, "{text}");
            assert_eq!(written.parse(), Ok(policy), "{written}");
        }
        assert_eq!(FallbackPolicy::default().to_string(), "after 10m");
    }

    #[test]
    fn everything_else_is_refused_with_what_would_be_right() {
        for text in ["", "soon", "after", "-5m", "after never", "32d", "10"] {
            let problem = text.parse::<FallbackPolicy>().unwrap_err().to_string();
            assert!(problem.contains("`never`, `at-once`"), "{problem}");
        }
    }
}
