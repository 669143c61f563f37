//! What is known of a link from trying it. Plain data, kept in the record of the node at its first end.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ids::NodeId, link::LinkKind};

/// What a link does. On disk a pair of numbers: a node's record has to fit a value of the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct LinkPace {
    /// A sum of one number over both ranks.
    pub round_trip_us: u64,
    /// What they exchange a second in a large sum.
    pub bytes_per_s: u64,
}

impl From<(u64, u64)> for LinkPace {
    fn from((round_trip_us, bytes_per_s): (u64, u64)) -> Self {
        Self { round_trip_us, bytes_per_s }
    }
}

impl From<LinkPace> for (u64, u64) {
    fn from(pace: LinkPace) -> Self {
        (pace.round_trip_us, pace.bytes_per_s)
    }
}

impl LinkPace {
    /// The better of both, each for itself.
    #[must_use]
    pub fn better_of(self, other: Self) -> Self {
        Self {
            round_trip_us: self.round_trip_us.min(other.round_trip_us),
            bytes_per_s: self.bytes_per_s.max(other.bytes_per_s),
        }
    }

    /// The worse of both, each for itself.
    #[must_use]
    pub fn worse_of(self, other: Self) -> Self {
        Self {
            round_trip_us: self.round_trip_us.max(other.round_trip_us),
            bytes_per_s: self.bytes_per_s.min(other.bytes_per_s),
        }
    }

    /// Whether `other` carries less than so many percent of this. Round trips are too easily disturbed to tell.
    #[must_use]
    pub fn is_much_better_than(self, other: Self, percent: u64) -> bool {
        other.bytes_per_s < self.bytes_per_s / 100 * percent
    }
}

impl fmt::Display for LinkPace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mega, giga) = (self.bytes_per_s as f64 / 1e6, self.bytes_per_s as f64 / 1e9);
        if giga >= 1.0 {
            write!(f, "{giga:.1} GB/s")?
        } else {
            write!(f, "{mega:.0} MB/s")?
        }
        match self.round_trip_us {
            us @ 0..1_000 => write!(f, ", {us} µs a sum"),
            us => write!(f, ", {:.1} ms a sum", us as f64 / 1e3),
        }
    }
}

/// A link of a node, as it was tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The node at its other end.
    pub other: NodeId,
    /// What it runs over.
    pub kind: LinkKind,
    /// When that was last.
    pub tried_unix_ms: u64,
    /// A sum over the boots and versions that both ends were in when it passed; `None` where it did not pass last.
    pub passed_in: Option<u32>,
    /// What it did when it passed last.
    pub pace: Option<LinkPace>,
    /// The best it ever did.
    pub best: Option<LinkPace>,
    /// It has failed since it passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doubted: bool,
    /// A test of it is under way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_way: bool,
    /// Tests of it in a row in which the machine at one end went down.
    #[serde(default, skip_serializing_if = "is_none")]
    pub went_down: u8,
}

fn is_none(count: &u8) -> bool {
    *count == 0
}

impl LinkRecord {
    /// Of a link that was never tried.
    #[must_use]
    pub fn new(other: NodeId, kind: LinkKind) -> Self {
        Self {
            other,
            kind,
            tried_unix_ms: 0,
            passed_in: None,
            pace: None,
            best: None,
            doubted: false,
            under_way: false,
            went_down: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_told_in_the_units_that_people_know_of_links() {
        let told = |round_trip_us, bytes_per_s| LinkPace { round_trip_us, bytes_per_s }.to_string();
        assert_eq!(told(35, 8_240_000_000), "8.2 GB/s, 35 µs a sum");
        assert_eq!(told(1_500, 112_000_000), "112 MB/s, 1.5 ms a sum");
    }

    #[test]
    fn half_of_the_best_is_not_yet_much_worse() {
        let pace = |bytes_per_s| LinkPace { round_trip_us: 30, bytes_per_s };
        assert!(!pace(1_000).is_much_better_than(pace(500), 50));
        assert!(pace(1_000).is_much_better_than(pace(499), 50));
        let mixed = pace(1_000).better_of(LinkPace { round_trip_us: 10, bytes_per_s: 5 });
        assert_eq!(mixed, LinkPace { round_trip_us: 10, bytes_per_s: 1_000 });
        let worst = pace(1_000).worse_of(LinkPace { round_trip_us: 10, bytes_per_s: 5 });
        assert_eq!(worst, LinkPace { round_trip_us: 30, bytes_per_s: 5 });
    }
}
