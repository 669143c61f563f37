//! The one task that owns the state. It takes messages in one at a time, lets the recovery machine decide, and carries
//! the effects out in order; nothing else changes the state. All I/O of a decision happens here or is started here.

mod diagnosis;
mod effects;
mod handle;
mod logs;
mod models;
mod ports;
mod report;
mod requests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use jiff::tz::TimeZone;
use nightshift_proto::v1;
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

pub use handle::{Handle, JobFiles, OpenSession, Refusal, SessionTicket};
pub(crate) use models::NodeReport;

use crate::{
    config::Config,
    ledger::{self, InputReader},
    model::{Epoch, EventDraft, Incident, JobId, NodeId, Severity, WorkerKey},
    notify,
    recovery::{CommittedRow, Event, Machine, Now, SessionId},
};

/// Messages waiting for the driver. Senders wait when it is full, which reaches agents as flow control.
const INBOX_MESSAGES: usize = 1_024;
/// The machine's resolution of time: restarts and silence are answered at most this late.
const TICK_MS: u64 = 100;

/// What the driver is started with.
#[derive(Debug)]
pub struct Options {
    /// The configuration in force.
    pub config: Config,
    /// Where the ledger is kept, as people should see it.
    pub state_dir: PathBuf,
    /// The address served on, as people should see it.
    pub listen_address: String,
    /// Tells this ledger from every other.
    pub ledger_id: String,
    /// The ledger, open.
    pub ledger: ledger::Handle,
    /// What it held.
    pub replay: ledger::Replay,
    /// Whose clock the windows of jobs go by.
    pub zone: TimeZone,
    /// Takes what people are told while nobody looks.
    pub notify: notify::Handle,
    /// Events from before the driver ran, for example about the configuration.
    pub notes: Vec<EventDraft>,
}

/// What reaches the driver.
enum Message {
    Open(OpenSession),
    Agent { node: NodeId, session: SessionId, body: Box<v1::agent_message::Body> },
    Closed { node: NodeId, session: SessionId },
    Request(requests::Request),
    CommitDone { node: NodeId, rows: Vec<CommittedRow>, outcome: Result<ledger::Committed, ledger::Error> },
    FailuresDone { rows: Vec<CommittedRow>, outcome: Result<ledger::Committed, ledger::Error> },
    ConfigChanged(Box<Config>),
    Note(EventDraft),
}

/// The sending side of a connection.
struct Connection {
    session: SessionId,
    outbox: mpsc::Sender<Result<v1::ControllerMessage, tonic::Status>>,
    closed: CancellationToken,
}

/// What is shown of a node beyond what the machine needs.
#[derive(Default)]
struct Display {
    observation: Option<v1::Observation>,
    runtime: Option<v1::RuntimeStatus>,
    agent_version: String,
    /// What its configuration lets a model take; 0: nothing said.
    memory_budget_bytes: u64,
    /// The Thunderbolt buses that its agent was told of in this session.
    told_ports: BTreeSet<String>,
    /// What its system counts of the memory of its worker, and of which that is.
    footprint: Option<(WorkerKey, u64)>,
    /// How far its clock is ahead of this one, by its last heartbeat; the way of that heartbeat included.
    clock_ahead_ms: Option<i64>,
}

struct Driver {
    machine: Machine,
    config: Config,
    ledger: ledger::Handle,
    inbox: mpsc::Receiver<Message>,
    to_self: mpsc::Sender<Message>,
    changes: watch::Sender<u64>,
    connections: BTreeMap<NodeId, Connection>,
    displays: BTreeMap<NodeId, Display>,
    inputs: HashMap<JobId, InputReader>,
    logs: logs::Requests,
    questions: models::Questions,
    /// Of the newest gang started: all its ranks are started in one go.
    gang_secret: Option<((JobId, Epoch), [u8; 32])>,
    notify: notify::Handle,
    watch: notify::Watch,
    /// Jobs whose newest record is not on disk because it could not be written.
    unrecorded: BTreeSet<JobId>,
    /// Nodes whose newest record could not be written: as many at most as there are nodes.
    unrecorded_nodes: BTreeSet<NodeId>,
    /// Incidents that could not be written yet.
    unwritten_incidents: BTreeMap<u64, Incident>,
    /// Why the ledger cannot be waited for any longer.
    stuck: Option<String>,
    next_job: JobId,
    next_session: u64,
    started: Now,
    clock: Instant,
    instance_id: String,
    ledger_id: String,
    state_dir: PathBuf,
    listen_address: String,
}

/// The ledger has not answered for so long that it never will.
#[derive(Debug, thiserror::Error)]
#[error("the ledger does not answer any more ({0}); start clusterd again, nothing acknowledged is lost")]
pub struct Stuck(String);

/// Starts the driver; it runs until `cancel` is cancelled. The second value ends when it has ended.
#[must_use]
pub fn run(
    options: Options,
    cancel: CancellationToken,
) -> (Handle, tokio::task::JoinHandle<Result<(), Stuck>>) {
    let (to_self, inbox) = mpsc::channel(INBOX_MESSAGES);
    let (changes, changed) = watch::channel(0);
    let handle = Handle::new(to_self.clone(), changed, options.ledger.clone());
    let clock = Instant::now();
    let started = Now { mono_ms: 0, unix_ms: unix_ms() };
    let driver = Driver {
        machine: Machine::new(options.config.policy()).in_zone(options.zone),
        config: options.config,
        ledger: options.ledger,
        inbox,
        to_self,
        changes,
        connections: BTreeMap::new(),
        displays: BTreeMap::new(),
        inputs: HashMap::new(),
        logs: logs::Requests::default(),
        questions: models::Questions::default(),
        gang_secret: None,
        notify: options.notify,
        watch: notify::Watch::default(),
        unrecorded: BTreeSet::new(),
        unrecorded_nodes: BTreeSet::new(),
        unwritten_incidents: BTreeMap::new(),
        stuck: None,
        next_job: options.replay.next_job,
        next_session: 1,
        started,
        clock,
        instance_id: instance_id(started),
        ledger_id: options.ledger_id,
        state_dir: options.state_dir,
        listen_address: options.listen_address,
    };
    let task = tokio::spawn(driver.run(options.replay, options.notes, cancel));
    (handle, task)
}

impl Driver {
    async fn run(
        mut self,
        replay: ledger::Replay,
        notes: Vec<EventDraft>,
        cancel: CancellationToken,
    ) -> Result<(), Stuck> {
        let ledger::Replay { jobs, nodes, models, incidents, repairs, remains, .. } = replay;
        self.apply(Event::Remembered { models, incidents }, &[]).await;
        self.apply(Event::Started { jobs, nodes, repairs, remains }, &[]).await;
        for note in notes {
            self.apply(Event::Note(note), &[]).await;
        }
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(TICK_MS));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                _ = tick.tick() => self.on_tick().await,
                message = self.inbox.recv() => match message {
                    Some(message) => self.on_message(message).await,
                    None => break,
                },
            }
            if let Some(problem) = self.stuck.take() {
                tracing::error!(problem, "the ledger does not answer any more; ending");
                return Err(Stuck(problem));
            }
            self.changes.send_modify(|version| *version += 1);
        }
        self.end().await;
        Ok(())
    }

    /// Workers go on without the controller; only the connections end. What was accepted is on disk already.
    async fn end(&mut self) {
        let draft = EventDraft {
            severity: Severity::Info,
            kind: "controller-stopped".to_owned(),
            node: None,
            job: None,
            message: "the controller was stopped; workers go on with the rows they hold".to_owned(),
        };
        self.apply(Event::Note(draft), &[]).await;
        for connection in std::mem::take(&mut self.connections).into_values() {
            connection.closed.cancel();
        }
        let open: Vec<JobId> =
            self.machine.jobs().filter(|job| !job.record.state.is_over()).map(|job| job.record.id).collect();
        for id in open {
            if let Some(record) = self.machine.job(id).map(|job| job.record.clone())
                && let Err(error) = self.ledger.put_job(record).await
            {
                tracing::warn!(job = %id, error = %chain(&error), "the job's counters were not recorded at the end");
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX),
            unix_ms: unix_ms(),
        }
    }

    async fn on_tick(&mut self) {
        let is_owed = !self.unrecorded.is_empty() || !self.unwritten_incidents.is_empty();
        if self.machine.storage_problem().is_some() || is_owed {
            self.try_storage().await;
        }
        self.apply(Event::Tick, &[]).await;
        if self.notify.is_on() {
            for message in self.watch.look_at(self.now(), &self.machine) {
                self.notify.tell(message);
            }
        }
    }

    /// Whether the disk takes writes again: first what is owed, then the word to go on.
    async fn try_storage(&mut self) {
        let room = self.ledger.free_bytes().is_ok_and(|free| free > self.config.limits.disk_reserve_bytes);
        if !room {
            return;
        }
        for id in std::mem::take(&mut self.unrecorded) {
            let Some(record) = self.machine.job(id).map(|job| job.record.clone()) else { continue };
            if let Err(error) = self.ledger.put_job(record).await {
                tracing::debug!(job = %id, error = %chain(&error), "still not recorded");
                self.unrecorded.insert(id);
                return;
            }
        }
        self.write_owed_incidents().await;
        self.apply(Event::StorageRecovered, &[]).await;
    }

    async fn on_message(&mut self, message: Message) {
        match message {
            Message::Open(open) => self.on_open(open).await,
            Message::Agent { node, session, body } => self.on_agent(node, session, *body).await,
            Message::Closed { node, session } => {
                self.drop_connection(&node, session);
                self.apply(Event::SessionLost { node, session }, &[]).await;
            }
            Message::Request(request) => self.on_request(request).await,
            Message::CommitDone { node, rows, outcome } => self.on_commit_done(node, rows, outcome).await,
            Message::FailuresDone { rows, outcome } => self.on_failures_done(rows, outcome).await,
            Message::ConfigChanged(config) => self.on_config(*config).await,
            Message::Note(draft) => self.apply(Event::Note(draft), &[]).await,
        }
    }

    async fn on_config(&mut self, config: Config) {
        let later = config.needs_restart(&self.config);
        let mut message = "the configuration was read again and is in force".to_owned();
        if !later.is_empty() {
            message.push_str(&format!("; {} take effect at the next start", later.join(", ")));
        }
        self.config = config.over(&self.config);
        self.notify.configure(self.config.notify.clone());
        let policy = self.config.policy();
        self.apply(Event::PolicyChanged(policy), &[]).await;
        let draft = EventDraft {
            severity: Severity::Info,
            kind: "config-reloaded".to_owned(),
            node: None,
            job: None,
            message,
        };
        self.apply(Event::Note(draft), &[]).await;
    }

    /// Lets the machine take in an event and carries out what it wants, until nothing more follows from it. `bodies`
    /// are those of a `Results` event.
    async fn apply(&mut self, event: Event, bodies: &[Bytes]) {
        let mut queue = VecDeque::from([event]);
        let mut bodies = bodies;
        while let Some(event) = queue.pop_front() {
            let heads = match &event {
                Event::Results { heads, .. } => heads.clone(),
                _ => Vec::new(),
            };
            let now = self.now();
            let effects = self.machine.step(now, event);
            self.carry_out(now, effects, &heads, bodies, &mut queue).await;
            bodies = &[];
        }
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Tells one run of the controller from another; a time and a process number are enough for that.
fn instance_id(started: Now) -> String {
    format!("{:x}-{:x}", started.unix_ms, std::process::id())
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
