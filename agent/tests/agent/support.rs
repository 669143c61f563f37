//! A controller that a test plays by hand, and the real agent binary with a stand-in for workers.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "what fails here fails the test that uses it")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use nightshift_proto::v1::{
    self, AgentMessage, ControllerMessage, WorkerId,
    agent_message::Body,
    agent_service_server::{AgentService, AgentServiceServer},
    controller_message, worker_event,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Every wait of a test is for a condition; this only ends one that will never come true.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Listens like a controller; what happens in a session is up to the test.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    server: JoinHandle<()>,
}

struct Service(mpsc::Sender<Session>);

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to_agent, outgoing) = mpsc::channel(64);
        let session = Session { from_agent: request.into_inner(), to_agent, seen: Vec::new() };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel(8);
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(AgentServiceServer::new(Service(sender)))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { address, sessions, server }
    }

    /// The next session an agent opens.
    pub(crate) async fn session(&mut self) -> Session {
        timeout(LIMIT, self.sessions.recv()).await.expect("no agent dialled").unwrap()
    }

    /// Goes away as if killed, and returns where it was.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.server.abort();
        // The listener is closed once the task has been dropped.
        let _ = self.server.await;
        self.address
    }
}

/// One session.
pub(crate) struct Session {
    from_agent: Streaming<AgentMessage>,
    to_agent: mpsc::Sender<ControllerMessage>,
    /// Everything received, for the message of a failed test.
    seen: Vec<Body>,
}

impl Session {
    /// The next message of any kind.
    pub(crate) async fn next(&mut self) -> Option<Body> {
        let message = timeout(LIMIT, self.from_agent.next()).await.unwrap_or_else(|_| {
            panic!("the agent says nothing more; so far: {:#?}", self.seen);
        });
        let body = message?.ok()?.body;
        self.seen.extend(body.clone());
        body
    }

    /// The next message that `pick` takes; others are passed over.
    pub(crate) async fn find<T>(&mut self, mut pick: impl FnMut(&Body) -> Option<T>) -> T {
        let found = timeout(LIMIT, async {
            loop {
                let body = self.next().await.expect("the agent ended the session");
                if let Some(found) = pick(&body) {
                    return found;
                }
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("it did not come; what came: {:#?}", self.seen),
        }
    }

    pub(crate) async fn send(&self, body: controller_message::Body) {
        self.to_agent.send(ControllerMessage { body: Some(body) }).await.unwrap();
    }

    /// Takes the Hello and answers it.
    pub(crate) async fn welcome(&mut self) -> v1::Hello {
        self.welcome_to("").await
    }

    /// Takes the Hello and answers it as a controller with this ledger.
    pub(crate) async fn welcome_to(&mut self, ledger_id: &str) -> v1::Hello {
        let hello = self
            .find(|body| match body {
                Body::Hello(hello) => Some(hello.clone()),
                other => panic!("{other:?} came before the Hello"),
            })
            .await;
        self.send(controller_message::Body::Welcome(v1::Welcome {
            controller_instance_id: "c".into(),
            heartbeat_interval_ms: 1_000,
            observation_interval_ms: 10_000,
            progress_interval_ms: 50,
            ledger_id: ledger_id.into(),
        }))
        .await;
        hello
    }

    /// Takes Hello and replay; what was replayed.
    pub(crate) async fn begin(&mut self) -> (v1::Hello, Vec<v1::RowResult>) {
        let hello = self.welcome().await;
        let mut replayed = Vec::new();
        self.find(|body| match body {
            Body::RowResults(results) => {
                replayed.extend(results.results.clone());
                None
            }
            Body::SpoolReplayed(_) => Some(()),
            Body::Heartbeat(_) | Body::Observation(_) => None,
            other => panic!("{other:?} came before the replay was over"),
        })
        .await;
        (hello, replayed)
    }

    pub(crate) async fn start_worker(&mut self, epoch: u64) -> v1::CommandResult {
        self.send(controller_message::Body::StartWorker(v1::StartWorker {
            command_id: epoch,
            worker: Some(worker(epoch)),
            model: "tiny".into(),
            ..Default::default()
        }))
        .await;
        self.command_result(epoch).await
    }

    /// Starts a worker and waits until it is ready; its pid.
    pub(crate) async fn ready_worker(&mut self, epoch: u64) -> u32 {
        let result = self.start_worker(epoch).await;
        assert!(result.accepted, "{result:?}");
        let pid = self
            .event(epoch, |event| match event {
                worker_event::Event::Started(started) => Some(started.pid),
                _ => None,
            })
            .await;
        self.event(epoch, |event| match event {
            worker_event::Event::Ready(ready) => Some(ready.clone()),
            _ => None,
        })
        .await;
        pid
    }

    pub(crate) async fn command_result(&mut self, command_id: u64) -> v1::CommandResult {
        self.find(|body| match body {
            Body::CommandResult(result) if result.command_id == command_id => Some(result.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn event<T>(
        &mut self,
        epoch: u64,
        pick: impl Fn(&worker_event::Event) -> Option<T>,
    ) -> T {
        self.find(|body| match body {
            Body::WorkerEvent(event) if event.worker == Some(worker(epoch)) => pick(event.event.as_ref()?),
            _ => None,
        })
        .await
    }

    pub(crate) async fn exited(&mut self, epoch: u64) -> v1::WorkerExited {
        self.event(epoch, |event| match event {
            worker_event::Event::Exited(exited) => Some(exited.clone()),
            _ => None,
        })
        .await
    }

    /// The answer of the next link test, whichever that is.
    pub(crate) async fn link_tested(&mut self) -> v1::LinkTested {
        self.find(|body| match body {
            Body::LinkTested(tested) => Some(tested.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn rows(&self, epoch: u64, rows: &[(u32, &str)]) {
        let rows = rows
            .iter()
            .map(|(row, name)| v1::Row {
                row: *row,
                attempt: 1,
                request: format!(r#"{{"custom_id":"{name}"}}"#).into(),
                ..Default::default()
            })
            .collect();
        self.send(controller_message::Body::Rows(v1::Rows { worker: Some(worker(epoch)), rows })).await;
    }

    /// The next `count` results.
    pub(crate) async fn results(&mut self, count: usize) -> Vec<v1::RowResult> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(
                self.find(|body| match body {
                    Body::RowResults(results) => Some(results.results.clone()),
                    _ => None,
                })
                .await,
            );
        }
        all
    }

    pub(crate) async fn ack(&self, through_spool_seq: u64) {
        self.send(controller_message::Body::AckResults(v1::AckResults { through_spool_seq })).await;
    }

    pub(crate) async fn stop(&mut self, epoch: u64, mode: v1::StopMode, grace_ms: u64) -> v1::CommandResult {
        self.send(controller_message::Body::StopWorker(v1::StopWorker {
            command_id: 1_000 + epoch,
            worker: Some(worker(epoch)),
            mode: mode.into(),
            grace_ms,
            reason: "a test".into(),
            ask_for_stack: false,
        }))
        .await;
        self.command_result(1_000 + epoch).await
    }
}

/// A port of loopback that nobody listens on, and that no other call of this process gives. Below those that systems give
/// to outgoing connections, which would take it again while a test has it in mind.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + u16::try_from(offset % 12_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn worker(epoch: u64) -> WorkerId {
    WorkerId { job_id: 7, epoch, rank: 0 }
}

/// Numbers and rows, for comparing.
pub(crate) fn numbers(results: &[v1::RowResult]) -> Vec<(u64, u32)> {
    results.iter().map(|result| (result.spool_seq, result.row)).collect()
}

/// The real binary.
pub(crate) struct Agent {
    process: Child,
    dir: PathBuf,
}

/// Rank 0 of two, on n1, with these ports on loopback.
pub(crate) fn gang(ring: u16, control: u16) -> v1::Gang {
    let peer = |rank: u32| v1::Peer {
        rank,
        node_id: format!("n{}", rank + 1),
        addresses: vec![format!("127.0.0.{}:{ring}", rank + 1)],
        control_addresses: vec![format!("127.0.0.1:{control}")],
        first_layer: 2 - 2 * rank,
        end_layer: 4 - 2 * rank,
        ..v1::Peer::default()
    };
    v1::Gang {
        mode: v1::Mode::Pipeline.into(),
        backend: v1::Backend::Ring.into(),
        world_size: 2,
        peers: vec![peer(0), peer(1)],
        secret: vec![7; 32],
        ..v1::Gang::default()
    }
}

/// Has rank 0's end of a link to n2 tried: the stand-in has measured it at once, or goes on for ever.
pub(crate) fn link_test(request_id: u64, goes_on: bool) -> v1::TestLink {
    let gang = gang(free_port(), free_port());
    let without_layers = |peer| v1::Peer { first_layer: 0, end_layer: 0, ..peer };
    v1::TestLink {
        request_id,
        gang: Some(v1::Gang {
            mode: v1::Mode::Tensor.into(),
            peers: gang.peers.into_iter().map(without_layers).collect(),
            rendezvous_timeout_ms: if goes_on { 3_600_000 } else { 30_000 },
            ..gang
        }),
        rank: 0,
        limit_ms: 0,
    }
}

/// A state directory and what an agent needs to run in it.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    node_id: String,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::of_node("n1")
    }

    pub(crate) fn of_node(node_id: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), node_id: node_id.to_owned() }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The process of a link test that runs, from its record.
    pub(crate) async fn link_test_pid(&self, request_id: u64) -> u32 {
        let path = self.state_dir().join(format!("workers/j0-e{request_id}-r0.json"));
        until("the test is on record", || {
            let record: serde_json::Value = serde_json::from_slice(&fs::read(&path).ok()?).unwrap();
            record["pid"].as_u64()?.try_into().ok()
        })
        .await
    }

    /// Starts an agent whose workers are the stand-in with these arguments.
    pub(crate) fn agent(&self, controller: SocketAddr, worker_arguments: &[&str]) -> Agent {
        self.agent_with_command(controller, &fake_worker(worker_arguments))
    }

    pub(crate) fn agent_with_command(&self, controller: SocketAddr, worker_command: &[String]) -> Agent {
        self.agent_with(controller, worker_command, "")
    }

    /// With further lines of configuration.
    pub(crate) fn agent_with(&self, controller: SocketAddr, worker_command: &[String], more: &str) -> Agent {
        self.agent_configured(controller, &format!("worker_command = {worker_command:?}\n{more}"))
    }

    /// With these lines of configuration.
    pub(crate) fn agent_configured(&self, controller: SocketAddr, lines: &str) -> Agent {
        let config = self.dir.path().join("agent.toml");
        fs::write(&config, format!("worker_grace_ms = 5000\n{lines}\n")).unwrap();
        let process = self
            .command(controller)
            .arg("--config")
            .arg(config)
            .stderr(
                fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap(),
            )
            .spawn()
            .unwrap();
        Agent { process, dir: self.dir.path().to_owned() }
    }

    pub(crate) fn command(&self, controller: SocketAddr) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-agent"));
        command
            .args(["run", "--node-id", &self.node_id, "--controller"])
            .arg(controller.to_string())
            .arg("--state-dir")
            .arg(self.state_dir())
            // What a shell might have left behind must not reach a worker.
            .env("MLX_RANK", "3")
            .env("JACCL_RING", "1")
            .env("PYTHONPATH", "/nonexistent")
            .env("RUST_LOG", "debug,h2=info,hyper_util=info,tower=info")
            .stdin(Stdio::null());
        command
    }
}

/// The command of the stand-in.
pub(crate) fn fake_worker(arguments: &[&str]) -> Vec<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agent/fake_worker.py");
    let program = program.display().to_string();
    ["python3", "-S", &program].iter().chain(arguments).map(|&word| word.to_owned()).collect()
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Dies without a chance to do anything.
    pub(crate) fn sigkill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        until("the agent ends", || self.process.try_wait().unwrap()).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Dead already where the test was about that.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            eprintln!("--- the agent's log\n{log}---");
        }
    }
}

/// Whether there is such a process that has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    nightshift_agent::sys::process_start(pid).is_some()
}

/// Waits until `condition` gives something.
pub(crate) async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let waited = timeout(LIMIT, async {
        loop {
            if let Some(found) = condition() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}
