//! The supervisor's loop.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use nightshift_proto::v1::{self, StopMode, agent_message::Body, worker_event};
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Command, Handle, MAX_COMMANDS, Options, Request,
    departed::Departed,
    link_tests::LinkTests,
    start::{Circumstances, Decision, Start, decide},
};
use crate::{
    epochs,
    gang::{self, Launch},
    link_test,
    session::feed::{Outbound, Sender as Feed},
    util,
    worker::{
        Key, faults,
        process::Process,
        record,
        task::{self, Departure},
    },
};

/// Answers and events that may wait for the session before no more commands are taken.
const MAX_OUTBOX: usize = 256;

/// On top of twice the grace (asking, then SIGTERM), for SIGKILL to do its work and the last lines to be read.
const ENDING_MARGIN: Duration = Duration::from_secs(10);

/// Starts the supervisor. When `stop` is cancelled it ends all workers, gently, and then itself.
#[must_use]
pub fn run(options: Options, stop: CancellationToken) -> Handle {
    let (requests, inbox) = mpsc::channel(MAX_COMMANDS);
    let ended = CancellationToken::new();
    // Each worker says once that it is ready.
    let (ready, ready_inbox) = mpsc::channel(2 * options.max_workers);
    let mut departed = Departed::default();
    options.leftovers.iter().for_each(|departure| departed.keep(departure.clone()));
    let link_tests = LinkTests::new(&options);
    let supervisor = Supervisor {
        options,
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        link_tests,
        keys: HashMap::new(),
        ready,
        departed,
        feed: None,
        report_interval: None,
        outbox: VecDeque::new(),
        draining: false,
        ending: false,
        starting_over: None,
    };
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        let _guard = guard;
        supervisor.serve(inbox, ready_inbox, stop).await;
    });
    Handle { requests, ended }
}

struct Supervisor {
    options: Options,
    workers: HashMap<Key, task::Handle>,
    tasks: JoinSet<Departure>,
    link_tests: LinkTests,
    keys: HashMap<Id, Key>,
    ready: mpsc::Sender<(Key, worker_event::Event)>,
    departed: Departed,
    feed: Option<Feed>,
    report_interval: Option<Duration>,
    outbox: VecDeque<Outbound>,
    draining: bool,
    ending: bool,
    /// Where to put what belongs to the old ledger, once its workers have ended, and whom to tell.
    starting_over: Option<(PathBuf, oneshot::Sender<Result<(), epochs::Error>>)>,
}

impl Supervisor {
    async fn serve(
        mut self,
        mut inbox: mpsc::Receiver<Request>,
        mut ready: mpsc::Receiver<(Key, worker_event::Event)>,
        stop: CancellationToken,
    ) {
        let mut give_up = pin!(stop_bound(&stop, self.options.grace));
        loop {
            if self.workers.is_empty() {
                self.finish_starting_over();
            }
            if self.ending && self.workers.is_empty() && (self.outbox.is_empty() || self.feed.is_none()) {
                return;
            }
            let feed = self.feed.clone().filter(|_| !self.outbox.is_empty());
            tokio::select! {
                () = stop.cancelled(), if !self.ending => self.end_all().await,
                () = &mut give_up => {
                    tracing::error!(workers = self.workers.len(), "workers could not be ended in time");
                    return;
                }
                sent = send_first(feed.as_ref(), &mut self.outbox) => {
                    if !sent {
                        self.detach().await;
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => self.on_ended(ended),
                Some(tested) = self.link_tests.next() => self.on_link_tested(tested),
                Some((key, event)) = ready.recv() => self.event(key, event),
                request = inbox.recv(), if self.outbox.len() < MAX_OUTBOX => match request {
                    Some(Request::Command(command)) => self.carry_out(command).await,
                    Some(Request::Attach { feed, done }) => {
                        // A session that is gone by now attaches again.
                        let _ = done.send(self.attach(feed).await);
                    }
                    Some(Request::Detach) => self.detach().await,
                    Some(Request::ReportInterval(interval)) => self.set_report_interval(interval).await,
                    Some(Request::StartOver { place, done }) => {
                        self.starting_over = Some((place, done));
                        self.stop_all(StopMode::Kill).await;
                    }
                    None => return,
                },
            }
        }
    }

    async fn attach(&mut self, feed: Feed) -> Vec<v1::RunningWorker> {
        self.detach().await;
        // The controller says again what it wants drained.
        self.draining = false;
        let mut running = Vec::new();
        for handle in self.workers.values() {
            running.extend(handle.attach(feed.clone()).await);
        }
        running.sort_by_key(|worker| worker.worker.as_ref().map(Key::from_proto));
        self.feed = Some(feed);
        self.outbox.extend(self.departed.tell(Instant::now()));
        running
    }

    async fn detach(&mut self) {
        // Its answer belongs to the controller that asked, and the next one may give its number again.
        self.link_tests.end("the session is over").await;
        if self.feed.take().is_none() {
            return;
        }
        self.departed.session_ended(Instant::now());
        self.outbox.clear();
        for handle in self.workers.values() {
            handle.detach().await;
        }
    }

    async fn set_report_interval(&mut self, interval: Duration) {
        self.report_interval = Some(interval);
        for handle in self.workers.values() {
            handle.set_report_interval(interval).await;
        }
    }

    async fn carry_out(&mut self, command: Command) {
        match command {
            Command::Start(start) => self.start(&start).await,
            Command::Stop(stop) => {
                let problem = self.stop(&stop).await;
                self.answer(stop.command_id, problem);
            }
            Command::Rows(v1::Rows { worker, rows }) => match self.worker(worker.as_ref()) {
                Some(handle) => handle.rows(rows).await,
                // They crossed its exit, which tells the controller that it has them not.
                None => tracing::debug!(?worker, rows = rows.len(), "rows for a worker that is not here"),
            },
            Command::Cancel(v1::CancelRows { worker, rows }) => {
                if let Some(handle) = self.worker(worker.as_ref()) {
                    handle.cancel(rows).await;
                }
            }
            Command::Restart(restart) => {
                let problem = self.restart(&restart).await;
                self.answer(restart.command_id, problem);
            }
            Command::Drain(drain) => {
                if self.draining != drain.draining {
                    tracing::info!(draining = drain.draining, "the controller has spoken");
                }
                self.draining = drain.draining;
            }
            Command::TestLink(test) => {
                if let Err(problem) = self.test_link(&test).await {
                    tracing::info!(request = test.request_id, problem, "a link is not tried");
                    self.tell_link_tested(link_test::not_made(test.request_id, problem));
                }
            }
        }
    }

    /// Begins to try a link, or says why not.
    async fn test_link(&mut self, test: &v1::TestLink) -> Result<(), String> {
        // The controller has one at a time on a node: one that still runs is one that it has given up.
        self.link_tests.end("the controller asks for another").await;
        if self.ending {
            return Err("this agent is ending".to_owned());
        }
        if self.options.restarter.is_under_way(util::unix_ms()) {
            return Err("this machine is restarting".to_owned());
        }
        let runtime = Arc::clone(&self.options.runtime.borrow());
        let node = gang::Node {
            node_id: &self.options.node_id,
            macos: self.options.is_mac,
            starts: self.options.jaccl_starts.budget(),
        };
        let planned = link_test::plan(test, &runtime, node)?;
        gang::ports::check(&planned.launch.listens)?;
        if planned.launch.counts() {
            self.spend_start().await?;
        }
        self.link_tests.begin(planned, &self.options.launcher)
    }

    fn on_link_tested(&mut self, tested: v1::LinkTested) {
        tracing::info!(
            request = tested.request_id,
            outcome = tested.outcome().as_str_name(),
            problem = tested.problem,
            round_trip_us = tested.round_trip_us,
            bytes_per_s = tested.bytes_per_s,
            "a link was tried"
        );
        self.tell_link_tested(tested);
    }

    fn tell_link_tested(&mut self, tested: v1::LinkTested) {
        self.send(Outbound { after_seq: 0, body: Body::LinkTested(tested) });
    }

    fn worker(&self, id: Option<&v1::WorkerId>) -> Option<&task::Handle> {
        self.workers.get(&Key::from_proto(id?))
    }

    /// Starts a worker, or says why not. A process that could not be started is an exit, not a refusal: the launch has
    /// been used up.
    async fn start(&mut self, start: &v1::StartWorker) {
        let running: Vec<Key> = self.workers.keys().copied().collect();
        let runtime = Arc::clone(&self.options.runtime.borrow());
        let now = Circumstances {
            draining: self.draining,
            ending: self.ending,
            restarting: self.options.restarter.is_under_way(util::unix_ms()),
            running: &running,
            max_workers: self.options.max_workers,
            highest_epoch: self.options.epochs.highest(start.worker.as_ref().map_or(0, |id| id.job_id)),
            runtime: &runtime,
            model_roots: &self.options.model_roots,
            node: gang::Node {
                node_id: &self.options.node_id,
                macos: self.options.is_mac,
                starts: self.options.jaccl_starts.budget(),
            },
        };
        match decide(start, &now) {
            Decision::Running => self.answer(start.command_id, None),
            Decision::Refuse(problem) => {
                tracing::info!(command = start.command_id, problem, "a start is refused");
                self.answer(start.command_id, Some(problem));
            }
            Decision::Start(to_start) => match self.make_way(&to_start).await {
                Ok(()) => {
                    // Before the worker's first event.
                    self.answer(start.command_id, None);
                    self.launch(*to_start).await;
                }
                Err(problem) => {
                    tracing::error!(key = %to_start.key, problem, "a start is refused");
                    self.answer(start.command_id, Some(problem));
                }
            },
        }
    }

    /// The last that can refuse a start, and what must be on disk before it.
    async fn make_way(&mut self, start: &Start) -> Result<(), String> {
        if let Some(launch) = &start.launch {
            gang::ports::check(&launch.listens)?;
            if launch.counts() {
                self.spend_start().await?;
            }
        }
        self.advance_epoch(start.key).await
    }

    async fn spend_start(&mut self) -> Result<(), String> {
        let mut starts = self.options.jaccl_starts.clone();
        let spent = tokio::task::spawn_blocking(move || {
            starts
                .spend()
                .map(|()| starts)
                .map_err(|error| format!("the count of RDMA starts cannot be written: {error}"))
        });
        self.options.jaccl_starts = spent.await.map_err(|error| error.to_string())??;
        self.options.starts_used.send_replace(self.options.jaccl_starts.budget().used);
        Ok(())
    }

    async fn advance_epoch(&mut self, key: Key) -> Result<(), String> {
        // Off the runtime's threads, because it waits for the disk.
        let mut epochs = self.options.epochs.clone();
        let advanced = tokio::task::spawn_blocking(move || {
            epochs.advance(key.job_id, key.epoch).map(|()| epochs).map_err(|error| util::chain(&error))
        });
        self.options.epochs = advanced.await.map_err(|error| error.to_string())??;
        Ok(())
    }

    fn start_process(&self, key: Key, launch: Option<&Launch>) -> io::Result<Process> {
        let variables = match launch {
            Some(launch) => self.options.gang_files.write(key, launch)?,
            None => Vec::new(),
        };
        let process = self.options.launcher.start(&variables)?;
        self.options.pids.note(process.group.leader(), key);
        // Without a record the next agent could not find it. Its stdin closes with it, and it ends.
        record::write(&self.options.records_dir, &process.record(key, self.options.boot_id.as_deref()))?;
        Ok(process)
    }

    async fn launch(&mut self, start: Start) {
        let Start { key, init, options, launch } = start;
        let process = match self.start_process(key, launch.as_ref()) {
            Ok(process) => process,
            Err(error) => {
                tracing::error!(%key, %error, "a worker cannot be started");
                let exited = v1::WorkerExited {
                    class: v1::ExitClass::SpawnFailed.into(),
                    first_error: format!("the process could not be started: {error}"),
                    ..Default::default()
                };
                self.depart(Departure { key, exited, checkpoints: Vec::new(), after_seq: 0 });
                return;
            }
        };
        self.options.memory_debt.note_start();
        let pid = process.group.leader();
        tracing::info!(%key, pid, model = init.model, "a worker has been started");
        self.event(key, worker_event::Event::Started(v1::WorkerStarted { pid }));
        let (handle, future) = task::run(task::Options {
            key,
            init,
            options,
            process,
            spool: self.options.spool.clone(),
            log: self.options.logs.open(&key.to_string(), Some(key.job_id)),
            feed: self.feed.clone(),
            ready: self.ready.clone(),
        });
        if let Some(interval) = self.report_interval {
            handle.set_report_interval(interval).await;
        }
        self.workers.insert(key, handle);
        let id = self.tasks.spawn(future).id();
        self.keys.insert(id, key);
    }

    async fn stop(&mut self, stop: &v1::StopWorker) -> Option<String> {
        let Some(handle) = self.worker(stop.worker.as_ref()) else {
            return Some("there is no such worker here".to_owned());
        };
        let grace =
            if stop.grace_ms == 0 { self.options.grace } else { Duration::from_millis(stop.grace_ms) };
        let key = stop.worker.as_ref().map(Key::from_proto);
        tracing::info!(
            key = key.map(tracing::field::display),
            mode = stop.mode().as_str_name(),
            reason = stop.reason,
            "a worker is to stop"
        );
        if stop.ask_for_stack {
            handle.group().ask_for_stack();
        }
        handle.stop(stop.mode(), grace).await;
        None
    }

    /// No worker is started while this waits, nor after it: the machine goes down, or the restart was refused.
    async fn restart(&mut self, restart: &v1::RestartMachine) -> Option<String> {
        // The controller asks for none where it tries a link: one that runs is one that it has given up.
        self.link_tests.end("a restart of this machine is asked for").await;
        let (restarter, restart, workers) =
            (self.options.restarter.clone(), restart.clone(), self.workers.len());
        let asked =
            tokio::task::spawn_blocking(move || restarter.restart(&restart, workers, util::unix_ms()));
        let problem = asked.await.map_err(|error| error.to_string()).and_then(|answer| answer).err();
        if let Some(problem) = &problem {
            tracing::warn!(problem, "a restart of this machine is refused");
        }
        problem
    }

    async fn end_all(&mut self) {
        self.ending = true;
        self.link_tests.end("this agent is ending").await;
        self.stop_all(StopMode::Checkpoint).await;
    }

    async fn stop_all(&self, mode: StopMode) {
        if !self.workers.is_empty() {
            tracing::info!(
                workers = self.workers.len(),
                mode = mode.as_str_name(),
                "all workers are to stop"
            );
        }
        for handle in self.workers.values() {
            handle.stop(mode, self.options.grace).await;
        }
    }

    fn finish_starting_over(&mut self) {
        let Some((place, done)) = self.starting_over.take() else { return };
        self.departed = Departed::default();
        // Whoever asked is gone only when the agent ends.
        let _ = done.send(self.options.epochs.set_aside(&place));
    }

    fn on_ended(&mut self, ended: Result<(Id, Departure), JoinError>) {
        match ended {
            Ok((id, departure)) => {
                self.keys.remove(&id);
                self.note_end(&departure.exited);
                self.depart(departure);
            }
            Err(error) => {
                let Some(key) = self.keys.remove(&error.id()) else { return };
                tracing::error!(%key, %error, "the task of a worker has failed");
                if let Some(handle) = self.workers.get(&key) {
                    handle.group().signal(Signal::SIGKILL);
                }
                let exited = v1::WorkerExited {
                    class: v1::ExitClass::Crashed.into(),
                    first_error: "the agent's own task for this worker has failed; see the agent's log"
                        .to_owned(),
                    killed_while_loaded: true,
                    ..Default::default()
                };
                self.note_end(&exited);
                let after_seq = *self.options.spool.last_seq().borrow();
                self.depart(Departure { key, exited, checkpoints: Vec::new(), after_seq });
            }
        }
    }

    /// Before the end is told: whoever hears of it may rely on what is known of the memory then.
    fn note_end(&self, exited: &v1::WorkerExited) {
        self.options.memory_debt.note_end(exited.killed_while_loaded);
        self.options.probe.look_soon();
    }

    fn depart(&mut self, departure: Departure) {
        let exited = &departure.exited;
        tracing::info!(
            key = %departure.key, class = exited.class().as_str_name(), exit_code = exited.exit_code,
            signal = exited.signal, first_error = exited.first_error, "a worker has ended"
        );
        if let Some((_, Some(hint))) = faults::explain(&exited.first_error) {
            tracing::info!(key = %departure.key, hint, "what this error means");
        }
        record::remove(&self.options.records_dir, departure.key);
        self.options.gang_files.remove(departure.key);
        self.workers.remove(&departure.key);
        let now = Instant::now();
        self.departed.keep(departure);
        if self.feed.is_some() {
            self.departed.forget_arrived(now);
            self.outbox.extend(self.departed.tell(now));
        }
    }

    fn answer(&mut self, command_id: u64, problem: Option<String>) {
        let result = v1::CommandResult {
            command_id,
            accepted: problem.is_none(),
            problem: problem.unwrap_or_default(),
        };
        self.send(Outbound { after_seq: 0, body: Body::CommandResult(result) });
    }

    fn event(&mut self, key: Key, event: worker_event::Event) {
        let event = v1::WorkerEvent { worker: Some(key.to_proto()), event: Some(event) };
        self.send(Outbound { after_seq: 0, body: Body::WorkerEvent(event) });
    }

    /// Without a session there is nobody to tell, and the next one begins with what is.
    fn send(&mut self, event: Outbound) {
        if self.feed.is_some() {
            self.outbox.push_back(event);
        }
    }
}

/// Puts the first of the outbox into the feed; never returns when there is no feed. False when the session is over.
async fn send_first(feed: Option<&Feed>, outbox: &mut VecDeque<Outbound>) -> bool {
    let Some(feed) = feed else { return std::future::pending().await };
    let Some(place) = feed.reserve().await else { return false };
    if let Some(event) = outbox.pop_front() {
        place.put(event);
    }
    true
}

/// Returns when ending has taken longer than it can in order.
async fn stop_bound(stop: &CancellationToken, grace: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(2 * grace + ENDING_MARGIN).await;
}
