//! What is told.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{EventDraft, JobId, NodeId, Severity};

/// What can be told. The words stand in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Every row has an answer or an error.
    JobCompleted,
    /// It cannot be run.
    JobFailed,
    /// It was cancelled.
    JobCancelled,
    /// The rules paused it: trying again has not helped.
    JobPaused,
    /// Nothing runs it, and nothing is about to.
    JobParked,
    /// Something runs it again.
    JobUnparked,
    /// Its deadline has passed with rows left.
    DeadlineMissed,
    /// Its window closed with rows left: the rest waits for the next opening.
    WindowMissed,
    /// It is in quarantine, its runtime cannot be used, or it has been silent for ten minutes.
    NodeNeedsPerson,
    /// Results cannot be stored.
    DiskFull,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::JobCompleted,
        Self::JobFailed,
        Self::JobCancelled,
        Self::JobPaused,
        Self::JobParked,
        Self::JobUnparked,
        Self::DeadlineMissed,
        Self::WindowMissed,
        Self::NodeNeedsPerson,
        Self::DiskFull,
    ];

    /// Those that are told unless said otherwise: an end, and what wants a person.
    pub const DEFAULT: [Self; 8] = [
        Self::JobCompleted,
        Self::JobFailed,
        Self::JobPaused,
        Self::JobParked,
        Self::DeadlineMissed,
        Self::WindowMissed,
        Self::NodeNeedsPerson,
        Self::DiskFull,
    ];

    /// As in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::JobCompleted => "job-completed",
            Self::JobFailed => "job-failed",
            Self::JobCancelled => "job-cancelled",
            Self::JobPaused => "job-paused",
            Self::JobParked => "job-parked",
            Self::JobUnparked => "job-unparked",
            Self::DeadlineMissed => "deadline-missed",
            Self::WindowMissed => "window-missed",
            Self::NodeNeedsPerson => "node-needs-person",
            Self::DiskFull => "disk-full",
        }
    }

    /// What an event is told as. What a person has just done needs no telling.
    fn of(event: &EventDraft) -> Option<Self> {
        match event.kind.as_str() {
            "job-completed" => Some(Self::JobCompleted),
            "job-failed" => Some(Self::JobFailed),
            "job-cancelled" => Some(Self::JobCancelled),
            "job-paused" if event.severity != Severity::Info => Some(Self::JobPaused),
            "job-parked" => Some(Self::JobParked),
            "job-unparked" => Some(Self::JobUnparked),
            "disk-full" => Some(Self::DiskFull),
            _ => None,
        }
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// What kind.
    pub kind: Kind,
    /// How much it matters.
    pub severity: Severity,
    /// When.
    pub unix_ms: u64,
    /// Which node.
    pub node: Option<NodeId>,
    /// Which job.
    pub job: Option<JobId>,
    /// One sentence.
    pub text: String,
    /// Messages since the last one that were not delivered.
    pub left_out: u64,
}

impl Message {
    /// What an event is told as, if it is.
    #[must_use]
    pub fn of_event(event: &EventDraft, unix_ms: u64) -> Option<Self> {
        Some(Self {
            kind: Kind::of(event)?,
            severity: event.severity,
            unix_ms,
            node: event.node.clone(),
            job: event.job,
            text: event.message.clone(),
            left_out: 0,
        })
    }

    /// One line of JSON: `kind`, `severity`, `at`, `node`, `job`, `text`, `left_out`. The sentence is called `text` because
    /// chat services take such an object as it is.
    #[must_use]
    pub fn to_json(&self) -> String {
        let at = i64::try_from(self.unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let text = match self.left_out {
            0 => self.text.clone(),
            1 => format!("{} (1 more message was left out; see `clusterctl events`)", self.text),
            more => format!("{} ({more} more messages were left out; see `clusterctl events`)", self.text),
        };
        let object = serde_json::json!({
            "kind": self.kind.word(),
            "severity": self.severity,
            "at": at.map(|at| format!("{at:.3}")),
            "node": self.node,
            "job": self.job.map(|job| job.to_string()),
            "text": text,
            "left_out": self.left_out,
        });
        object.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_configuration_and_all_are_there() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
        }
        assert!(Kind::DEFAULT.iter().all(|kind| Kind::ALL.contains(kind)));
        let unknown = serde_json::from_str::<Kind>("\"job-done\"").unwrap_err().to_string();
        for kind in Kind::ALL {
            assert!(unknown.contains(kind.word()), "{unknown}");
        }
    }

    #[test]
    fn a_message_is_one_object_of_a_stable_shape() {
        let event = EventDraft {
            severity: Severity::Info,
            kind: "job-completed".to_owned(),
            node: None,
            job: Some(JobId(7)),
            message: "j7 is complete: 600 of 600 rows answered".to_owned(),
        };
        let message = Message::of_event(&event, 1_795_199_400_250).unwrap();
        let json = |message: &Message| serde_json::from_str::<serde_json::Value>(&message.to_json()).unwrap();
        assert_eq!(
            json(&message),
            serde_json::json!({
                "kind": "job-completed", "severity": "info", "at": "2026-11-20T18:30:00.250Z", "node": null, "job": "j7",
                "text": "j7 is complete: 600 of 600 rows answered", "left_out": 0,
            })
        );
        let folded = json(&Message { left_out: 3, ..message });
        assert!(
            folded["text"]
                .as_str()
                .unwrap()
                .ends_with("(3 more messages were left out; see `clusterctl events`)")
        );
    }

    #[test]
    fn what_a_person_did_is_not_told() {
        let paused = |severity| EventDraft {
            severity,
            kind: "job-paused".to_owned(),
            node: None,
            job: Some(JobId(7)),
            message: String::new(),
        };
        assert_eq!(Message::of_event(&paused(Severity::Info), 1), None);
        assert_eq!(Message::of_event(&paused(Severity::Error), 1).map(|m| m.kind), Some(Kind::JobPaused));
        let other = EventDraft { kind: "worker-ready".to_owned(), ..paused(Severity::Error) };
        assert_eq!(Message::of_event(&other, 1), None);
    }
}
