//! What no single event says: a node has needed a person for a while, a deadline passed, a window closed too early. Pure:
//! looks at how things stand, with the time as an argument, and tells each once, until it is over.

use std::collections::{BTreeMap, BTreeSet};

use super::{Kind, Message};
use crate::{
    model::{JobId, JobState, NodeId, Severity},
    recovery::{Job, Machine, Node, Now},
};

/// Silence for less than this is answered by the rules, and mostly over: a Mac that reboots is back.
const SILENT_FOR_LONG_MS: u64 = 10 * 60_000;

/// Between two looks; a person is not there within a second.
const LOOK_EVERY_MS: u64 = 1_000;

/// Why a node needs a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// No word from it for long.
    Silent,
    /// Its GPU failed too often.
    Quarantined,
    /// It cannot run workers.
    Runtime,
}

/// How a node stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStanding {
    /// Which.
    pub node: NodeId,
    /// What it needs a person for, and in a sentence.
    pub need: Option<(Need, String)>,
}

/// How a job stands that is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobStanding {
    /// Which.
    pub job: JobId,
    /// Whether it may work now, of one with a window.
    pub is_open: Option<bool>,
    /// Rows left.
    pub rows_left: u64,
    /// By when it was to be done.
    pub deadline_unix_ms: Option<u64>,
}

impl NodeStanding {
    /// Of a node. One that is drained is somebody's business already.
    #[must_use]
    pub fn of(now: Now, node: &Node) -> Self {
        let id = &node.id;
        // Of a controller that has just started it is not known how long a node has been silent.
        let silent_ms = now.mono_ms.saturating_sub(node.last_heard_mono_ms.unwrap_or(0));
        let need = if node.session.is_none() {
            let minutes = silent_ms / 60_000;
            (silent_ms >= SILENT_FOR_LONG_MS && !node.draining).then(|| {
                let text =
                    format!("no word from {id} for {minutes} minutes: look whether it is on and reachable");
                (Need::Silent, text)
            })
        } else if let Some(quarantine) = &node.quarantine {
            let text =
                format!("{id} is in quarantine: {}; `clusterctl undrain {id}` ends that", quarantine.reason);
            Some((Need::Quarantined, text))
        } else {
            let problem = node.facts.runtime_problem.as_ref();
            problem.map(|problem| (Need::Runtime, format!("{id} cannot run workers: {problem}")))
        };
        Self { node: id.clone(), need }
    }
}

impl JobStanding {
    /// Of a job that is not over.
    #[must_use]
    pub fn of(job: &Job) -> Option<Self> {
        let record = &job.record;
        (!record.state.is_over()).then(|| Self {
            job: record.id,
            is_open: (record.spec.window.is_some() && record.state == JobState::Active)
                .then(|| job.window_words().is_none()),
            rows_left: u64::from(record.rows_total - job.done.len()),
            deadline_unix_ms: record.spec.deadline_unix_ms,
        })
    }
}

/// Remembers what has been told.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    looked_mono_ms: Option<u64>,
    looked_unix_ms: Option<u64>,
    needy: BTreeMap<NodeId, Need>,
    /// Jobs whose window was open at the last look.
    open: BTreeSet<JobId>,
}

impl Watch {
    /// Looks at a machine, if it is time to; what is to be told.
    pub fn look_at(&mut self, now: Now, machine: &Machine) -> Vec<Message> {
        if self.looked_mono_ms.is_some_and(|at| now.mono_ms < at + LOOK_EVERY_MS) {
            return Vec::new();
        }
        let nodes: Vec<NodeStanding> = machine.nodes().map(|node| NodeStanding::of(now, node)).collect();
        let jobs: Vec<JobStanding> = machine.jobs().filter_map(JobStanding::of).collect();
        self.look(now, &nodes, &jobs)
    }

    /// Looks at how things stand.
    pub fn look(&mut self, now: Now, nodes: &[NodeStanding], jobs: &[JobStanding]) -> Vec<Message> {
        self.looked_mono_ms = Some(now.mono_ms);
        let before_unix_ms = self.looked_unix_ms.replace(now.unix_ms);
        let mut messages = Vec::new();
        let needy: BTreeMap<NodeId, Need> = nodes
            .iter()
            .filter_map(|standing| Some((standing.node.clone(), standing.need.as_ref()?.0)))
            .collect();
        let known = std::mem::replace(&mut self.needy, needy);
        for NodeStanding { node, need } in nodes {
            if let Some((need, text)) = need
                && known.get(node) != Some(need)
            {
                messages.push(Message {
                    kind: Kind::NodeNeedsPerson,
                    severity: Severity::Error,
                    unix_ms: now.unix_ms,
                    node: Some(node.clone()),
                    job: None,
                    text: text.clone(),
                    left_out: 0,
                });
            }
        }
        let open = jobs.iter().filter(|job| job.is_open == Some(true)).map(|job| job.job).collect();
        let was_open = std::mem::replace(&mut self.open, open);
        for standing in jobs {
            let JobStanding { job, rows_left, .. } = *standing;
            let left = if rows_left == 1 { "1 row".to_owned() } else { format!("{rows_left} rows") };
            let mut tell = |kind, text| {
                messages.push(Message {
                    kind,
                    severity: Severity::Warning,
                    unix_ms: now.unix_ms,
                    node: None,
                    job: Some(job),
                    text,
                    left_out: 0,
                });
            };
            // What had passed before the first look was told by a controller before this one, or will not help.
            let has_passed = standing
                .deadline_unix_ms
                .zip(before_unix_ms)
                .is_some_and(|(deadline, before)| before < deadline && deadline <= now.unix_ms);
            if has_passed && rows_left > 0 {
                tell(Kind::DeadlineMissed, format!("the deadline of {job} has passed with {left} left"));
            }
            if was_open.contains(&job) && standing.is_open == Some(false) && rows_left > 0 {
                let text =
                    format!("the window of {job} closed with {left} left; they wait for its next opening");
                tell(Kind::WindowMissed, text);
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Now {
        Now { mono_ms: second * 1_000, unix_ms: 1_000_000 + second * 1_000 }
    }

    fn node(need: Option<Need>) -> NodeStanding {
        NodeStanding { node: "a".into(), need: need.map(|need| (need, format!("{need:?}"))) }
    }

    fn kinds(messages: &[Message]) -> Vec<Kind> {
        messages.iter().map(|message| message.kind).collect()
    }

    #[test]
    fn a_node_that_needs_a_person_is_told_once_for_each_need() {
        let mut watch = Watch::default();
        let script = [
            (None, 0),
            (Some(Need::Silent), 1),
            (Some(Need::Silent), 0),
            (Some(Need::Runtime), 1),
            (None, 0),
            (Some(Need::Runtime), 1),
            (Some(Need::Quarantined), 1),
        ];
        for (second, (need, expected)) in (0..).zip(script) {
            let messages = watch.look(at(second), &[node(need)], &[]);
            assert_eq!(messages.len(), expected, "{second}: {need:?}");
        }
    }

    #[test]
    fn a_deadline_is_told_when_it_passes_and_a_window_when_it_closes_over_rows() {
        let mut watch = Watch::default();
        let job = |is_open, rows_left| JobStanding {
            job: JobId(7),
            is_open: Some(is_open),
            rows_left,
            deadline_unix_ms: Some(at(5).unix_ms),
        };
        assert_eq!(kinds(&watch.look(at(4), &[], &[job(false, 9)])), [], "it waits for its window");
        let passed = watch.look(at(5), &[], &[job(true, 9)]);
        assert_eq!(kinds(&passed), [Kind::DeadlineMissed]);
        assert_eq!(passed[0].text, "the deadline of j7 has passed with 9 rows left");
        assert_eq!(kinds(&watch.look(at(6), &[], &[job(false, 1)])), [Kind::WindowMissed]);
        assert_eq!(kinds(&watch.look(at(7), &[], &[job(false, 1)])), []);
        assert_eq!(kinds(&watch.look(at(8), &[], &[job(true, 0)])), []);
        assert_eq!(kinds(&watch.look(at(9), &[], &[job(false, 0)])), [], "it is done");

        let mut later = Watch::default();
        assert_eq!(
            kinds(&later.look(at(6), &[], &[job(true, 9)])),
            [],
            "a controller before this one told it"
        );
    }
}
