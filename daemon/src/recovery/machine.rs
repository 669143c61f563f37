//! The machine itself: its state and the one way to move it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;

use super::{
    effect::{Command, Effect},
    event::{Event, Now},
    incidents::Incidents,
    link_health::LinkHealth,
    link_tests::LinkTests,
    meetings::Unmet,
    models::Models,
    rules::Policy,
    state::{Job, Node},
};
use crate::model::{Cable, EventDraft, Incident, JobId, LearnedModel, Link, NodeId, Severity};

/// Everything the controller knows, and the rules that move it.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) policy: Policy,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Jobs that are not over, so that a tick does not look at a year of finished ones.
    pub(super) open_jobs: BTreeSet<JobId>,
    pub(super) incidents: Incidents,
    /// Why results cannot be stored now.
    pub(super) storage_problem: Option<String>,
    pub(super) next_command_id: u64,
    pub(super) models: Models,
    /// What has been learned of models, by the fingerprint of their files.
    pub(super) learned: BTreeMap<String, LearnedModel>,
    /// Ways between nodes that gangs may use.
    pub(super) links: Vec<Link>,
    /// Cables between nodes, also those that are good for nothing now.
    pub(super) cables: Vec<Cable>,
    /// How often either has changed.
    pub(super) links_version: u64,
    pub(super) link_health: LinkHealth,
    pub(super) link_tests: LinkTests,
    pub(super) unmet: Unmet,
    pub(super) port_offset: u16,
    /// Whose clock the windows of jobs go by.
    pub(super) zone: TimeZone,
    /// When the last tick was.
    pub(super) ticked_mono_ms: Option<u64>,
    /// Up to when the time of busy workers is counted.
    pub(super) busy_counted_mono_ms: Option<u64>,
    pub(super) out: Vec<Effect>,
}

impl Machine {
    /// A machine that knows nothing yet; the first event should be [`Event::Started`].
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            nodes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            open_jobs: BTreeSet::new(),
            incidents: Incidents::default(),
            storage_problem: None,
            next_command_id: 1,
            models: Models::default(),
            learned: BTreeMap::new(),
            links: Vec::new(),
            cables: Vec::new(),
            links_version: 0,
            link_health: LinkHealth::default(),
            link_tests: LinkTests::default(),
            unmet: Unmet::default(),
            port_offset: 0,
            zone: TimeZone::UTC,
            ticked_mono_ms: None,
            busy_counted_mono_ms: None,
            out: Vec::new(),
        }
    }

    /// The same machine, with windows by another clock than UTC.
    #[must_use]
    pub fn in_zone(self, zone: TimeZone) -> Self {
        Self { zone, ..self }
    }

    /// Takes in one event and says what is to be done, in order.
    #[must_use]
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut reconsider = true;
        match event {
            Event::Started { jobs, nodes, repairs, remains } => {
                self.on_started(now, jobs, nodes);
                self.tell_of_repairs(now, repairs, remains);
            }
            Event::Remembered { models, incidents } => {
                self.on_remembered(models);
                self.incidents.remember(incidents);
                reconsider = false;
            }
            Event::Tick => self.on_tick(now),
            Event::PolicyChanged(policy) => {
                self.policy = policy;
                self.refresh_links(now);
            }
            Event::Observed { node, memory, interfaces, thunderbolt, boot, may_restart } => {
                self.on_may_restart(&node, may_restart);
                reconsider = self.on_observed(now, &node, memory, interfaces, thunderbolt)
                    | self.on_boot_facts(now, &node, boot);
            }
            Event::ModelFound { node, session, model, found } => {
                self.on_model_found(&node, session, &model, found);
            }
            Event::Hello { node, session, facts, workers } => {
                self.on_hello(now, node, session, facts, workers)
            }
            Event::SpoolReplayed { node, session } => self.on_spool_replayed(now, &node, session),
            Event::Heard { node, session } => {
                self.on_heard(now, &node, session);
                reconsider = false;
            }
            Event::NodeSeen { node, request_id, of, seen, how } => {
                self.on_node_seen(now, &node, request_id, &of, seen, how);
                reconsider = false;
            }
            Event::LinkTested { node, session, request_id, result } => {
                reconsider = self.on_link_tested(now, &node, session, request_id, result);
            }
            Event::SessionLost { node, session } => self.on_session_lost(&node, session),
            Event::RuntimeChanged { node, problem } => self.on_runtime_changed(&node, problem),
            Event::WorkerStarted { node, worker, pid } => self.on_worker_started(now, &node, worker, pid),
            Event::WorkerReady { node, worker, load_ms, canary_tokens } => {
                self.on_worker_ready(now, &node, worker, load_ms);
                self.learn_answer(now, &node, worker, &canary_tokens);
            }
            Event::WorkerExited { node, exit } => self.on_worker_exited(now, &node, &exit),
            Event::CommandWithheld { node, command_id } => self.on_restart_withheld(&node, command_id),
            Event::CommandRefused { node, command_id, problem } => {
                self.on_command_refused(now, &node, command_id, problem);
            }
            Event::Progress { node, news } => {
                self.on_progress(now, &node, news);
                reconsider = false;
            }
            Event::Results { node, session, heads } => {
                self.on_results(&node, session, &heads);
                reconsider = false;
            }
            Event::Committed { node, rows, totals } => self.on_committed(now, &node, &rows, &totals),
            Event::CommitFailed { node, rows, problem } => self.on_commit_failed(now, &node, &rows, problem),
            Event::FailuresStored { rows, totals } => self.on_failures_stored(now, &rows, &totals),
            Event::StorageFailed { problem } => {
                self.on_storage_failed(now, problem);
                reconsider = false;
            }
            Event::StorageRecovered => self.on_storage_recovered(now),
            Event::JobAccepted(record) => self.on_job_accepted(record),
            Event::InputUnreadable { job, problem } => self.fail_job(now, job, problem),
            Event::Pause(job) => self.on_pause(job),
            Event::Resume(job) => self.on_resume(job),
            Event::Cancel { job, now: at_once } => self.on_cancel(now, job, at_once),
            Event::Drain { node, drain } => self.on_drain(now, &node, drain),
            Event::Note(draft) => self.out.push(Effect::Emit(draft)),
        }
        if reconsider {
            self.settle_jobs(now);
            self.mind_windows(now);
            self.ask_about_models();
            self.dispatch(now);
        }
        self.out
            .extend(self.incidents.take_changed().map(|incident| Effect::RecordIncident(Box::new(incident))));
        std::mem::take(&mut self.out)
    }

    /// The rules' numbers in force.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whose clock the windows of jobs go by.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// All nodes known, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.jobs.values()
    }

    /// One job.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Incidents kept, newest first.
    pub fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.newest_first()
    }

    /// Why results cannot be stored now, if they cannot.
    #[must_use]
    pub fn storage_problem(&self) -> Option<&str> {
        self.storage_problem.as_deref()
    }

    pub(super) fn emit(
        &mut self,
        severity: Severity,
        kind: &str,
        node: Option<&NodeId>,
        job: Option<JobId>,
        message: String,
    ) {
        self.out.push(Effect::Emit(EventDraft {
            severity,
            kind: kind.to_owned(),
            node: node.cloned(),
            job,
            message,
        }));
    }

    pub(super) fn record_job(&mut self, job: JobId) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.work_unwritten_since_mono_ms = None;
            self.out.push(Effect::RecordJob(Box::new(job.record.clone())));
        }
    }

    pub(super) fn record_node(&mut self, node: &NodeId) {
        if let Some(node) = self.nodes.get(node) {
            self.out.push(Effect::RecordNode(node.record()));
        }
    }

    /// Tells a node something; a node without a connection learns the truth from its next hello instead.
    pub(super) fn send(&mut self, node: &NodeId, command: Command) {
        if let Some(session) = self.nodes.get(node).and_then(|node| node.session.as_ref()) {
            self.out.push(Effect::Send { node: node.clone(), session: session.id, command });
        }
    }

    pub(super) fn command_id(&mut self) -> u64 {
        let id = self.next_command_id;
        self.next_command_id += 1;
        id
    }
}
