//! The one owner of a running worker process.
//!
//! Everything of one worker happens in this task: lines are read, answers spooled, signals sent, the exit noticed. It
//! waits for nothing but through its one `select`, so that a full spool or a silent worker never keeps a stop waiting.
//! While answers wait for the spool, stdout is not read: that is how a full spool slows the worker down.
//!
//! The end, in this order: the process exits; what is left of its group gets SIGKILL; stdout is read to its end (for
//! two seconds at most: a process that left the group may hold it open); the last answers are spooled; only then is
//! the exit reported, with the number of the last answer, so that the report never overtakes it.

use std::{
    future::{Future, pending},
    pin::Pin,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nightshift_proto::v1::{self, RowResult, StopMode, worker_event};
use nix::sys::signal::Signal;
use tokio::{
    process::Child,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument as _;

use super::{
    Key, answers,
    faults::Scan,
    log,
    machine::{Action, Machine, Output},
    process::{Group, Process},
    protocol::{Command, Event, Init, Ready},
    reader::{Batch, Reader},
    stdin::Writer,
};
use crate::{logging::Source, probe, session::feed::Sender as Feed, spool, sys};

/// After the exit, for what the pipes still hold.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Orders that may wait for this task, which never blocks; far more than a session sends at once.
const MAX_ORDERS: usize = 256;

/// Lines of the log in the report of an exit (agent.proto).
const TAIL_LINES: usize = 50;

/// Checkpoints in one message: well below the largest message, and quickly sent.
const REPORT_BYTES: usize = 2 * 1024 * 1024;

/// Messages with checkpoints sent at one tick; more waits for the next, so that checkpoints never crowd answers out.
const REPORTS_A_TICK: usize = 4;

/// Checkpoints kept of a worker that ended, until they are sent. Past it the rest is generated again.
const KEPT_BYTES: usize = 64 * 1024 * 1024;

/// Used until the controller names another.
const DEFAULT_REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// What the task needs.
#[derive(Debug)]
pub struct Options {
    /// Which worker.
    pub key: Key,
    /// What it is told first.
    pub init: Init,
    /// What the controller wanted, for its adoption later.
    pub options: v1::WorkerOptions,
    /// The started process.
    pub process: Process,
    /// Where answers go.
    pub spool: spool::Handle,
    /// Where its stderr goes.
    pub log: Source,
    /// The session, if there is one now.
    pub feed: Option<Feed>,
    /// Where [`Ready`] is told.
    pub ready: mpsc::Sender<(Key, worker_event::Event)>,
}

/// A worker that has ended, and all that is to be told of it.
#[derive(Debug, Clone)]
pub struct Departure {
    /// Which worker.
    pub key: Key,
    /// How it ended.
    pub exited: v1::WorkerExited,
    /// The tokens of its unfinished rows.
    pub checkpoints: Vec<v1::Progress>,
    /// To be told after the answer of this number.
    pub after_seq: u64,
}

enum Order {
    Rows(Vec<v1::Row>),
    Cancel(Vec<u32>),
    Stop { mode: StopMode, grace: Duration },
    Attach { feed: Feed, done: oneshot::Sender<v1::RunningWorker> },
    Detach,
    ReportInterval(Duration),
}

/// Gives orders to a worker's task.
#[derive(Debug, Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    group: Group,
}

impl Handle {
    /// Its process group.
    #[must_use]
    pub fn group(&self) -> Group {
        self.group
    }

    /// Hands it rows. One that ends meanwhile does not take them, which its exit tells.
    pub async fn rows(&self, rows: Vec<v1::Row>) {
        self.order(Order::Rows(rows)).await;
    }

    /// Takes rows back.
    pub async fn cancel(&self, rows: Vec<u32>) {
        self.order(Order::Cancel(rows)).await;
    }

    /// Ends it.
    pub async fn stop(&self, mode: StopMode, grace: Duration) {
        self.order(Order::Stop { mode, grace }).await;
    }

    /// From now on reports go into `feed`. What is known of it, or `None` when it has just ended.
    pub async fn attach(&self, feed: Feed) -> Option<v1::RunningWorker> {
        let (done, wait) = oneshot::channel();
        self.order(Order::Attach { feed, done }).await;
        wait.await.ok()
    }

    /// There is no session.
    pub async fn detach(&self) {
        self.order(Order::Detach).await;
    }

    /// How often to report.
    pub async fn set_report_interval(&self, interval: Duration) {
        self.order(Order::ReportInterval(interval)).await;
    }

    async fn order(&self, order: Order) {
        // A task that is gone has ended its worker: there is nothing to order any more.
        let _ = self.orders.send(order).await;
    }
}

/// Makes the task of a started worker. The future ends when the worker has, with all that is to be told of it.
pub fn run(options: Options) -> (Handle, impl Future<Output = Departure> + Send + 'static) {
    let (orders, inbox) = mpsc::channel(MAX_ORDERS);
    let group = options.process.group;
    let span = tracing::info_span!("worker", key = %options.key, pid = group.leader());
    let Options { key, init, options, process, spool, log, feed, ready } = options;
    let Process { child, stdin, stdout, stderr, .. } = process;
    let log_source = Arc::new(log);
    let scan = Arc::new(Mutex::new(Scan::default()));
    let reading_log = tokio::spawn(log::read(stderr, Arc::clone(&log_source), Arc::clone(&scan)));
    let task = Task {
        key,
        world_size: init.world_size,
        options,
        machine: Machine::new(key.rank, init.world_size, std::time::Instant::now()),
        child,
        group,
        stdin: Some(Writer::start(stdin)),
        reader: Some(stdout),
        spool,
        spooling: None,
        answers: Vec::new(),
        log: log_source,
        scan,
        feed,
        ready,
        report_interval: DEFAULT_REPORT_INTERVAL,
        memory_kills_before: probe::memory_kills(),
    };
    let future = async move { task.run(init, inbox, reading_log).await }.instrument(span);
    (Handle { orders, group }, future)
}

type Spooling = Pin<Box<dyn Future<Output = Result<(), spool::Closed>> + Send>>;

struct Task {
    key: Key,
    world_size: u32,
    options: v1::WorkerOptions,
    machine: Machine,
    child: Child,
    group: Group,
    stdin: Option<Writer>,
    /// Until the end of its stdout.
    reader: Option<Reader>,
    spool: spool::Handle,
    /// Answers on their way into the spool, and which.
    spooling: Option<(Spooling, Vec<(u32, u32)>)>,
    /// Answers to go next.
    answers: Vec<RowResult>,
    log: Arc<Source>,
    scan: Arc<Mutex<Scan>>,
    feed: Option<Feed>,
    ready: mpsc::Sender<(Key, worker_event::Event)>,
    report_interval: Duration,
    /// To tell a kill for want of memory from any other.
    memory_kills_before: Option<u64>,
}

impl Task {
    async fn run(
        mut self,
        init: Init,
        mut orders: mpsc::Receiver<Order>,
        reading_log: JoinHandle<()>,
    ) -> Departure {
        self.carry_out(vec![Action::Write(Command::Init(&init).to_line())]);
        let mut ended: Option<(ExitStatus, Instant)> = None;
        let mut report_at = Instant::now();
        let mut supervised = true;
        loop {
            self.spool_answers();
            if let Some((_, until)) = ended
                && self.spooling.is_none()
                && (self.reader.is_none() || Instant::now() >= until)
            {
                break;
            }
            let deadline = self.machine.deadline().filter(|_| ended.is_none());
            let room = self.spooling.is_none();
            tokio::select! {
                order = orders.recv(), if supervised => match order {
                    Some(order) => self.obey(order),
                    // The supervisor is gone: so is the agent, nearly, and a worker ends with its input.
                    None => (supervised, self.stdin) = (false, None),
                },
                spooled = spooled(&mut self.spooling) => {
                    self.on_spooled(spooled);
                    // The limit is for a pipe that does not end, not for a spool that has no room.
                    ended = ended.map(|(status, _)| (status, Instant::now() + DRAIN_LIMIT));
                }
                batch = read(&mut self.reader), if room => self.on_read(batch),
                status = self.child.wait(), if ended.is_none() => {
                    ended = Some((self.on_exit(status), Instant::now() + DRAIN_LIMIT));
                }
                () = sleep_until_or_never(deadline.map(Instant::from_std)) => {
                    let actions = self.machine.on_time(std::time::Instant::now());
                    self.carry_out(actions);
                }
                () = sleep_until_or_never(ended.map(|(_, until)| until).filter(|_| room)) => {
                    tracing::info!("something holds the worker's stdout open after its end");
                    self.reader = None;
                }
                () = sleep_until(report_at), if self.feed.is_some() && ended.is_none() => {
                    report_at = Instant::now() + self.report_interval;
                    self.report();
                }
            }
        }
        let status = ended.map(|(status, _)| status);
        self.depart(status, reading_log).await
    }

    fn obey(&mut self, order: Order) {
        let now = std::time::Instant::now();
        match order {
            Order::Rows(rows) => {
                let (actions, refused) = self.machine.assign(&rows);
                self.answers.extend(refused.into_iter().map(|row| answers::of_refusal(self.key, row)));
                self.carry_out(actions);
            }
            Order::Cancel(rows) => {
                let actions = self.machine.cancel(&rows);
                self.carry_out(actions);
            }
            Order::Stop { mode, grace } => {
                let actions = self.machine.stop(mode, grace, now);
                self.carry_out(actions);
            }
            Order::Attach { feed, done } => {
                self.feed = Some(feed);
                self.catch_up();
                let snapshot = v1::RunningWorker {
                    worker: Some(self.key.to_proto()),
                    pid: self.group.leader(),
                    options: Some(self.options),
                    world_size: self.world_size,
                    ..self.machine.snapshot()
                };
                // A session that is gone by now asks again.
                let _ = done.send(snapshot);
            }
            Order::Detach => self.feed = None,
            Order::ReportInterval(interval) => self.report_interval = interval,
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Write(line) => {
                    let stuck = self.stdin.as_ref().and_then(|stdin| stdin.write(line).err());
                    if let Some(stuck) = stuck {
                        let actions = self.machine.fail(stuck.to_string(), std::time::Instant::now());
                        self.carry_out(actions);
                    }
                }
                Action::Terminate => {
                    tracing::info!("SIGTERM to the worker's group");
                    self.group.signal(Signal::SIGTERM);
                }
                Action::Kill => {
                    tracing::info!("the worker did not end within its grace: SIGKILL to its group");
                    self.group.signal(Signal::SIGKILL);
                }
            }
        }
    }

    /// Reads what came; at the end of the pipe, notes it.
    fn on_read(&mut self, batch: Option<Batch>) {
        let Some(batch) = batch else {
            self.reader = None;
            return;
        };
        for event in batch.events {
            if !self.machine.is_trusted() {
                return;
            }
            match event.and_then(|event| self.machine.on_event(event, batch.at)) {
                Ok(None) => {}
                Ok(Some(Output::Answer(answer))) => self.answers.push(answers::of_worker(self.key, answer)),
                Ok(Some(Output::Ready(ready))) => self.on_ready(ready),
                Err(reason) => {
                    tracing::warn!("{reason}");
                    let actions = self.machine.fail(reason, std::time::Instant::now());
                    self.carry_out(actions);
                }
            }
        }
    }

    /// Takes the newest step into account, before anybody is told how things stand.
    fn catch_up(&mut self) {
        let newest = self.reader.as_ref().and_then(Reader::newest_step);
        if let Some((step, at)) = newest.filter(|_| self.machine.is_trusted())
            && let Err(reason) = self.machine.on_event(Event::Step(step), at)
        {
            tracing::debug!(reason, "a step that says nothing");
        }
    }

    fn on_ready(&mut self, ready: Ready) {
        tracing::info!(
            load_ms = ready.load_ms,
            rendezvous_ms = ready.rendezvous_ms,
            form_ms = ready.form_ms,
            canary_ms = ready.canary.as_ref().map(|canary| canary.prompt_ms),
            model_type = ready.model_type,
            "the worker is ready"
        );
        let event = worker_event::Event::Ready(v1::WorkerReady {
            load_ms: ready.load_ms,
            peak_memory_bytes: ready.peak_memory_bytes,
            has_chat_template: ready.has_chat_template,
            model_type: ready.model_type,
            canary_tokens: ready.canary.map(|canary| canary.tokens).unwrap_or_default(),
            rendezvous_ms: ready.rendezvous_ms,
        });
        if self.ready.try_send((self.key, event)).is_err() {
            // There is room for one from every worker there may be; a second from one worker is its own fault.
            tracing::debug!("a worker said twice that it is ready");
        }
    }

    /// Sends what has been collected on its way, one batch at a time.
    fn spool_answers(&mut self) {
        if self.spooling.is_some() || self.answers.is_empty() {
            return;
        }
        let answers = std::mem::take(&mut self.answers);
        let rows = answers.iter().map(|answer| (answer.row, answer.attempt)).collect();
        let spool = self.spool.clone();
        self.spooling = Some((Box::pin(async move { spool.append(answers).await }), rows));
    }

    fn on_spooled(&mut self, outcome: Result<(), spool::Closed>) {
        let rows = self.spooling.take().map(|(_, rows)| rows).unwrap_or_default();
        if outcome.is_ok() {
            rows.into_iter().for_each(|(row, attempt)| self.machine.spooled(row, attempt));
        }
    }

    fn report(&mut self) {
        self.catch_up();
        let now = std::time::Instant::now();
        let Some(feed) = self.feed.as_ref().filter(|_| self.machine.report_is_due(now)) else { return };
        for _ in 0..REPORTS_A_TICK {
            // A session that cannot keep up gets the next report instead, with newer numbers.
            let Some(place) = feed.try_reserve() else { return };
            let (progress, more) = self.machine.report(now, REPORT_BYTES);
            let footprint_bytes = sys::footprint_bytes(self.group.leader());
            place.progress(v1::Progress { worker: Some(self.key.to_proto()), footprint_bytes, ..progress });
            if !more {
                return;
            }
        }
    }

    fn on_exit(&mut self, status: std::io::Result<ExitStatus>) -> ExitStatus {
        // The group's number stays taken while anything of it is left, and otherwise was free for microseconds only.
        if self.group.signal(Signal::SIGKILL) {
            tracing::info!("processes the worker left behind were ended");
        }
        self.stdin = None;
        status.unwrap_or_else(|error| {
            tracing::error!(%error, "how the worker ended cannot be learnt");
            ExitStatus::default()
        })
    }

    async fn depart(mut self, status: Option<ExitStatus>, mut reading_log: JoinHandle<()>) -> Departure {
        if timeout(DRAIN_LIMIT, &mut reading_log).await.is_err() {
            reading_log.abort();
        }
        use std::os::unix::process::ExitStatusExt as _;
        let (code, signal) =
            (status.and_then(|status| status.code()), status.and_then(|status| status.signal()));
        let memory_kills = probe::memory_kills() > self.memory_kills_before;
        let mut exited = self.machine.exited(
            code,
            signal,
            memory_kills,
            &self.scan.lock().unwrap_or_else(PoisonError::into_inner),
        );
        exited.log_tail = self.log.tail(TAIL_LINES);

        // All of it from the beginning: whoever is told may be another controller than the one that heard the rest.
        self.machine.snapshot();
        let (mut checkpoints, mut left) = (Vec::new(), KEPT_BYTES);
        while left > 0 {
            let (progress, _) = self.machine.report(std::time::Instant::now(), REPORT_BYTES);
            if progress.checkpoints.is_empty() {
                break;
            }
            checkpoints.push(v1::Progress { worker: Some(self.key.to_proto()), ..progress });
            left = left.saturating_sub(REPORT_BYTES);
        }
        Departure { key: self.key, exited, checkpoints, after_seq: *self.spool.last_seq().borrow() }
    }
}

/// The answers under way, spooled; never, when there are none.
async fn spooled(spooling: &mut Option<(Spooling, Vec<(u32, u32)>)>) -> Result<(), spool::Closed> {
    match spooling {
        Some((append, _)) => append.await,
        None => pending().await,
    }
}

/// What has been read; never, when the pipe is at its end.
async fn read(reader: &mut Option<Reader>) -> Option<Batch> {
    match reader {
        Some(reader) => reader.next().await,
        None => pending().await,
    }
}

async fn sleep_until_or_never(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
