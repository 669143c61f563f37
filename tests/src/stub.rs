//! A node without Python: speaks the agent's side of the session protocol in this process and answers rows at once, or
//! as many as it is given leave to. For cases about the controller alone, and for the benchmark.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use nightshift_proto::{
    MAX_MESSAGE_BYTES, SESSION_PROTOCOL_VERSION,
    v1::{
        AgentMessage, Capabilities, CommandResult, ControllerMessage, ExitClass, Heartbeat, HeldRow, Hello,
        LogLines, Memory, ModelInspected, ModelReport, Observation, Progress, Row, RowResult, RowResults,
        RunningWorker, RuntimeStatus, SpoolReplayed, WorkerEvent, WorkerExited, WorkerId, WorkerOptions,
        WorkerPhase, WorkerReady, WorkerStarted, agent_message::Body,
        agent_service_client::AgentServiceClient, controller_message, worker_event::Event,
    },
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::Endpoint;

/// Messages on their way to the controller: a few batches of results, then the node waits for the stream to take them.
const OUTGOING: usize = 64;

/// Results in one message, as agents send them.
const RESULTS_PER_MESSAGE: usize = 256;

/// What a stub answers with: about a hundred bytes.
const ANSWER: &[u8] =
    br#"{"object":"chat.completion","choices":[{"index":0,"message":{"content":"stub"}}],"usage":{}}"#;

/// How a stub node behaves.
#[derive(Clone, Debug)]
pub struct StubOptions {
    /// Its name.
    pub node_id: String,
    /// The controller, "ip:port".
    pub controller: String,
    /// Rows it may answer before it waits for [`StubNode::allow`]; `u64::MAX` for no limit.
    pub allowance: u64,
}

/// A running stub node.
#[derive(Debug)]
pub struct StubNode {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: StubOptions,
    state: Mutex<State>,
    wake: tokio::sync::Notify,
    acknowledged: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    allowance: u64,
    answered: u64,
    seq: u64,
    workers: BTreeMap<(u64, u64), StubWorker>,
    spool: VecDeque<RowResult>,
    /// Rows in the order they were answered in: job and row.
    history: Vec<(u64, u32)>,
    draining: bool,
    commands: u32,
    ledger_id: String,
}

#[derive(Debug)]
struct StubWorker {
    id: WorkerId,
    options: Option<WorkerOptions>,
    rows: VecDeque<Row>,
    step: u64,
}

impl StubNode {
    /// Starts it; it connects, and connects again whenever the stream ends.
    #[must_use]
    pub fn start(options: StubOptions) -> Self {
        let state = State { allowance: options.allowance, ..State::default() };
        let shared = Arc::new(Shared {
            options,
            state: Mutex::new(state),
            wake: tokio::sync::Notify::new(),
            acknowledged: AtomicU64::new(0),
        });
        let task = tokio::spawn(run(shared.clone()));
        Self { shared, task }
    }

    /// Lets it answer so many more rows.
    pub fn allow(&self, rows: u64) {
        let mut state = self.shared.lock();
        state.allowance = state.allowance.saturating_add(rows);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Rows answered so far, acknowledged or not.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.lock().answered
    }

    /// Results the controller has said are durable.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Rows it holds, by job.
    #[must_use]
    pub fn held(&self) -> BTreeMap<u64, usize> {
        let mut held = BTreeMap::new();
        for worker in self.shared.lock().workers.values() {
            *held.entry(worker.id.job_id).or_default() += worker.rows.len();
        }
        held
    }

    /// Jobs and rows in the order they were answered in.
    #[must_use]
    pub fn history(&self) -> Vec<(u64, u32)> {
        self.shared.lock().history.clone()
    }

    /// Whether the controller has told it to take no new work.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.shared.lock().draining
    }
}

impl Drop for StubNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the stub's state panics")
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        if let Err(problem) = session(&shared).await {
            // The controller is away or ended the stream: what a case is about, and no business of the node's.
            note(&shared.options.node_id, &problem);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Notes are shown only on demand: most ends of sessions are what the case wants.
fn note(node: &str, problem: &str) {
    if std::env::var_os("NIGHTSHIFT_STUB_LOG").is_some() {
        eprintln!("stub {node}: {problem}");
    }
}

async fn session(shared: &Arc<Shared>) -> Result<(), String> {
    let channel = Endpoint::from_shared(format!("http://{}", shared.options.controller))
        .map_err(|error| error.to_string())?
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let (sender, receiver) = mpsc::channel(OUTGOING);
    send(&sender, Body::Hello(shared.hello())).await?;
    let mut inbound = AgentServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .session(ReceiverStream::new(receiver))
        .await
        .map_err(|status| status.to_string())?
        .into_inner();
    match inbound.message().await.map_err(|status| status.to_string())?.and_then(|message| message.body) {
        Some(controller_message::Body::Welcome(welcome)) => shared.serve(welcome.ledger_id)?,
        other => return Err(format!("expected Welcome, got {other:?}")),
    }
    let spooled: Vec<RowResult> = shared.lock().spool.iter().cloned().collect();
    send_results(&sender, spooled).await?;
    send(&sender, Body::SpoolReplayed(SpoolReplayed {})).await?;

    let mut beat = tokio::time::interval(Duration::from_secs(1));
    let mut progress = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            message = inbound.next() => match message {
                Some(Ok(ControllerMessage { body: Some(body) })) => take(shared, &sender, body).await?,
                Some(Ok(ControllerMessage { body: None })) => return Err("an empty message".to_owned()),
                Some(Err(status)) => return Err(status.to_string()),
                None => return Err("the controller ended the session".to_owned()),
            },
            _ = beat.tick() => send(&sender, Body::Heartbeat(Heartbeat { sent_unix_ms: unix_ms(), lag_ms: 0 })).await?,
            _ = progress.tick() => {
                for report in shared.progress() {
                    send(&sender, Body::Progress(report)).await?;
                }
            }
            () = shared.wake.notified() => {}
        }
        let results = shared.answer();
        send_results(&sender, results).await?;
    }
}

async fn take(
    shared: &Shared,
    sender: &mpsc::Sender<AgentMessage>,
    body: controller_message::Body,
) -> Result<(), String> {
    use controller_message::Body as Command;
    match body {
        Command::StartWorker(start) => {
            let id = start.worker.ok_or("StartWorker without a worker")?;
            let pid = {
                let mut state = shared.lock();
                state.commands += 1;
                let worker = StubWorker { id, options: start.options, rows: VecDeque::new(), step: 0 };
                state.workers.insert((id.job_id, id.epoch), worker);
                1_000_000 + state.commands
            };
            command_result(sender, start.command_id).await?;
            event(sender, id, Event::Started(WorkerStarted { pid })).await?;
            let ready = WorkerReady {
                load_ms: 1,
                peak_memory_bytes: 1 << 20,
                has_chat_template: true,
                model_type: "stub".to_owned(),
                ..WorkerReady::default()
            };
            event(sender, id, Event::Ready(ready)).await
        }
        Command::StopWorker(stop) => {
            let id = stop.worker.ok_or("StopWorker without a worker")?;
            shared.lock().workers.remove(&(id.job_id, id.epoch));
            command_result(sender, stop.command_id).await?;
            let exited = WorkerExited {
                class: ExitClass::Orderly.into(),
                exit_code: Some(0),
                ..WorkerExited::default()
            };
            event(sender, id, Event::Exited(exited)).await
        }
        Command::Rows(rows) => {
            let id = rows.worker.ok_or("Rows without a worker")?;
            if let Some(worker) = shared.lock().workers.get_mut(&(id.job_id, id.epoch)) {
                worker.rows.extend(rows.rows);
            }
            Ok(())
        }
        Command::CancelRows(cancel) => {
            let id = cancel.worker.ok_or("CancelRows without a worker")?;
            if let Some(worker) = shared.lock().workers.get_mut(&(id.job_id, id.epoch)) {
                worker.rows.retain(|row| !cancel.rows.contains(&row.row));
            }
            Ok(())
        }
        Command::AckResults(ack) => {
            let mut state = shared.lock();
            while state.spool.front().is_some_and(|result| result.spool_seq <= ack.through_spool_seq) {
                state.spool.pop_front();
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
        Command::Drain(drain) => {
            shared.lock().draining = drain.draining;
            Ok(())
        }
        // It has no ports.
        Command::ClusterPorts(_) | Command::RestartMachine(_) => Ok(()),
        Command::LogRequest(request) => {
            let lines = LogLines { request_id: request.request_id, lines: Vec::new(), end: true };
            send(sender, Body::LogLines(lines)).await
        }
        // It sees nobody; who does not look does not answer.
        Command::LookAtNode(_) | Command::TestLink(_) => Ok(()),
        Command::InspectModel(request) => {
            let report = ModelReport {
                problem: format!("the model {} is no directory on this node", request.model),
                model: request.model,
                not_here_yet: true,
                ..ModelReport::default()
            };
            let inspected = ModelInspected { request_id: request.request_id, report: Some(report) };
            send(sender, Body::ModelInspected(inspected)).await
        }
        Command::Welcome(_) => Err("a second Welcome".to_owned()),
    }
}

impl Shared {
    /// Takes the controller's ledger; what belongs to another one is dropped, and the session with it.
    fn serve(&self, ledger_id: String) -> Result<(), String> {
        let mut state = self.lock();
        let is_other = !state.ledger_id.is_empty() && state.ledger_id != ledger_id;
        state.ledger_id = ledger_id;
        if is_other {
            state.workers.clear();
            state.spool.clear();
            return Err("the controller has another ledger".to_owned());
        }
        Ok(())
    }

    fn hello(&self) -> Hello {
        let state = self.lock();
        let workers = state.workers.values().map(|worker| RunningWorker {
            worker: Some(worker.id),
            pid: 1,
            phase: WorkerPhase::Decode.into(),
            rows: worker
                .rows
                .iter()
                .map(|row| HeldRow { row: row.row, attempt: row.attempt, tokens: 0, started: false })
                .collect(),
            step: worker.step,
            options: worker.options,
            ..RunningWorker::default()
        });
        Hello {
            protocol_version: SESSION_PROTOCOL_VERSION,
            node_id: self.options.node_id.clone(),
            agent_instance_id: format!("stub-{}", self.options.node_id),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            observation: Some(observation()),
            runtime: Some(RuntimeStatus {
                ready: true,
                python_version: "3.11.0".to_owned(),
                mlx_version: "0.32.4".to_owned(),
                mlx_lm_version: "0.32.2".to_owned(),
                problem: String::new(),
            }),
            capabilities: Some(Capabilities::default()),
            workers: workers.collect(),
            spooled_results: state.spool.len() as u64,
            ledger_id: state.ledger_id.clone(),
        }
    }

    /// Answers what it may, and gives the results to send.
    fn answer(&self) -> Vec<RowResult> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut results = Vec::new();
        for worker in state.workers.values_mut() {
            while state.allowance > state.answered {
                let Some(row) = worker.rows.pop_front() else { break };
                state.answered += 1;
                state.seq += 1;
                worker.step += 1;
                state.history.push((worker.id.job_id, row.row));
                results.push(RowResult {
                    spool_seq: state.seq,
                    worker: Some(worker.id),
                    row: row.row,
                    attempt: row.attempt,
                    status_code: 200,
                    body: Bytes::from_static(ANSWER),
                    prompt_tokens: 10,
                    completion_tokens: 10,
                    resumed_tokens: 0,
                    emitted_unix_ms: unix_ms(),
                });
            }
        }
        state.spool.extend(results.iter().cloned());
        results
    }

    fn progress(&self) -> Vec<Progress> {
        let mut state = self.lock();
        state
            .workers
            .values_mut()
            .map(|worker| {
                worker.step += 1;
                let waiting = worker.rows.len() as u32;
                Progress {
                    worker: Some(worker.id),
                    phase: if waiting > 0 { WorkerPhase::Decode } else { WorkerPhase::Idle }.into(),
                    step: worker.step,
                    step_age_ms: 1,
                    active_rows: waiting,
                    ..Progress::default()
                }
            })
            .collect()
    }
}

fn observation() -> Observation {
    Observation {
        observed_unix_ms: unix_ms(),
        boot_id: "stub-boot".to_owned(),
        os_name: "linux".to_owned(),
        os_build: "stub".to_owned(),
        arch: "none".to_owned(),
        memory: Some(Memory {
            total_bytes: Some(64 << 30),
            available_bytes: Some(48 << 30),
            ..Memory::default()
        }),
        cpu_count: 2,
        disk_available_bytes: Some(1 << 40),
        ..Observation::default()
    }
}

async fn send_results(sender: &mpsc::Sender<AgentMessage>, results: Vec<RowResult>) -> Result<(), String> {
    let mut results = results.into_iter().peekable();
    while results.peek().is_some() {
        let batch = results.by_ref().take(RESULTS_PER_MESSAGE).collect();
        send(sender, Body::RowResults(RowResults { results: batch })).await?;
    }
    Ok(())
}

async fn command_result(sender: &mpsc::Sender<AgentMessage>, command_id: u64) -> Result<(), String> {
    send(sender, Body::CommandResult(CommandResult { command_id, accepted: true, problem: String::new() }))
        .await
}

async fn event(sender: &mpsc::Sender<AgentMessage>, id: WorkerId, event: Event) -> Result<(), String> {
    send(sender, Body::WorkerEvent(WorkerEvent { worker: Some(id), event: Some(event) })).await
}

async fn send(sender: &mpsc::Sender<AgentMessage>, body: Body) -> Result<(), String> {
    sender.send(AgentMessage { body: Some(body) }).await.map_err(|_| "the stream is closed".to_owned())
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
