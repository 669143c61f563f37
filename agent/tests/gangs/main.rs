//! Gangs of two ranks on loopback, each started by an agent of its own, with the real worker and real MLX over its ring.
//!
//! The controllers are the tests' own. Without a Python runtime that is ready (`cluster-agent runtime check`) the cases
//! are counted as ignored.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test that uses it")]

#[expect(dead_code, reason = "shared with the tests whose workers are stand-ins, which use more of it")]
#[path = "../agent/support.rs"]
mod support;

use std::{
    future::Future,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::OnceLock,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nightshift_proto::v1::{
    self, ExitClass, StopMode, WorkerId, agent_message::Body, controller_message, worker_event::Event,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{Agent, Controller, Session, Site, free_port, until};

/// A rank notices a lost one in at most 2 s (channel.py); the rest is for a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

const EPOCH: u64 = 4;

fn main() -> ExitCode {
    let trials = vec![
        case("two_ranks_answer_as_one_and_end_in_order", two_ranks_answer),
        case("a_killed_follower_ends_the_leader", || killed(1)),
        case("a_killed_leader_ends_the_follower", || killed(0)),
        case("a_rank_that_does_not_come_is_named", nobody_comes),
        case("a_follower_ends_gently_without_its_leader", gently_without_leader),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn case<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if runtime_dir().is_none() {
            let reason =
                "there is no Python runtime that is ready; `cluster-agent runtime install` makes one";
            // On the machine that decides whether a change lands, silence would be a lie.
            if std::env::var_os("CI").is_some() {
                return Err(Failed::from(format!("cannot be run here: {reason}")));
            }
            return Ok(Completion::ignored_with(reason));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(body());
        Ok(Completion::Completed)
    })
}

/// Where the runtime is, when it is ready.
fn runtime_dir() -> Option<&'static PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let output = agent_command(&["runtime", "check", "--json"]).output().unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let ready = report["ready"] == serde_json::Value::Bool(true);
            // <runtime>/bin/python
            let python = Path::new(report["python"].as_str().filter(|_| ready)?);
            python.parent()?.parent().map(Path::to_owned)
        })
        .as_ref()
}

fn agent_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-agent"));
    command.args(arguments);
    command
}

/// A tiny llama of four layers with random weights, made once.
fn model() -> &'static str {
    static MADE: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("llama").display().to_string();
        let arguments = ["runtime", "tiny-model", "--arch", "llama", "--layers", "4", "--out", &out];
        let output = agent_command(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (dir, out)
    });
    &made.1
}

/// Two agents, each in session with a controller of the test's.
struct Cluster {
    ranks: Vec<Rank>,
    gang: v1::Gang,
}

struct Rank {
    rank: u32,
    site: Site,
    session: Session,
    _agent: Agent,
    _controller: Controller,
}

impl Cluster {
    async fn new() -> Self {
        let runtime = format!("runtime_dir = {:?}", runtime_dir().unwrap());
        let mut ranks = Vec::new();
        for rank in 0..2 {
            let (site, mut controller) = (Site::of_node(&format!("n{rank}")), Controller::start().await);
            let agent = site.agent_configured(controller.address, &runtime);
            let mut session = controller.session().await;
            let (hello, _) = session.begin().await;
            assert!(hello.runtime.unwrap().ready);
            ranks.push(Rank { rank, site, session, _agent: agent, _controller: controller });
        }
        Self { ranks, gang: gang() }
    }

    /// Both ranks started and ready; their pids.
    async fn up(&mut self) -> [u32; 2] {
        for rank in &mut self.ranks {
            let result = rank.start(self.gang.clone()).await;
            assert!(result.accepted, "{result:?}");
        }
        let mut pids = [0; 2];
        for (rank, pid) in self.ranks.iter_mut().zip(&mut pids) {
            *pid = rank
                .event(|event| match event {
                    Event::Started(started) => Some(started.pid),
                    _ => None,
                })
                .await;
        }
        for rank in &mut self.ranks {
            let ready = rank
                .event(|event| match event {
                    Event::Ready(ready) => Some(ready.clone()),
                    _ => None,
                })
                .await;
            assert_eq!(ready.canary_tokens.len(), if rank.rank == 0 { 8 } else { 0 }, "{ready:?}");
            assert!(ready.rendezvous_ms < 30_000 && ready.model_type == "llama", "{ready:?}");
        }
        pids
    }
}

impl Rank {
    fn id(&self) -> WorkerId {
        WorkerId { job_id: 7, epoch: EPOCH, rank: self.rank }
    }

    async fn start(&mut self, gang: v1::Gang) -> v1::CommandResult {
        self.session
            .send(controller_message::Body::StartWorker(v1::StartWorker {
                command_id: 1,
                worker: Some(self.id()),
                model: model().to_owned(),
                gang: Some(gang),
                ..v1::StartWorker::default()
            }))
            .await;
        self.session.command_result(1).await
    }

    async fn event<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> T {
        let id = self.id();
        self.session
            .find(|body| match body {
                Body::WorkerEvent(event) if event.worker == Some(id) => pick(event.event.as_ref()?),
                _ => None,
            })
            .await
    }

    async fn exited(&mut self) -> v1::WorkerExited {
        let exited = self
            .event(|event| match event {
                Event::Exited(exited) => Some(exited.clone()),
                _ => None,
            })
            .await;
        let files = self.site.state_dir().join("gangs");
        until("its files are gone", || (std::fs::read_dir(&files).unwrap().count() == 0).then_some(())).await;
        exited
    }

    async fn stop(&mut self, mode: StopMode, grace_ms: u64) {
        self.session
            .send(controller_message::Body::StopWorker(v1::StopWorker {
                command_id: 2,
                worker: Some(self.id()),
                mode: mode.into(),
                grace_ms,
                reason: "a test".into(),
                ask_for_stack: false,
            }))
            .await;
        assert!(self.session.command_result(2).await.accepted);
    }

    /// Rows of so many tokens each.
    async fn rows(&mut self, count: u32, max_tokens: u32) {
        let row = |row: u32| {
            let request = format!(
                r#"{{"custom_id":"r{row}","method":"POST","url":"/v1/chat/completions","body":{{"messages":[{{"role":"user","content":"row {row}"}}],"temperature":0,"max_tokens":{max_tokens}}}}}"#
            );
            v1::Row { row, attempt: 1, request: request.into(), ..v1::Row::default() }
        };
        let rows = v1::Rows { worker: Some(self.id()), rows: (0..count).map(row).collect() };
        self.session.send(controller_message::Body::Rows(rows)).await;
    }
}

fn gang() -> v1::Gang {
    let ports = [(); 3].map(|()| free_port());
    let peer = |rank: u32| v1::Peer {
        rank,
        node_id: format!("n{rank}"),
        addresses: vec![format!("127.0.0.1:{}", ports[1 + rank as usize])],
        control_addresses: vec![format!("127.0.0.1:{}", ports[0])],
        // Uneven, and rank 0 has the last.
        first_layer: if rank == 0 { 3 } else { 0 },
        end_layer: if rank == 0 { 4 } else { 3 },
        ..v1::Peer::default()
    };
    v1::Gang {
        mode: v1::Mode::Pipeline.into(),
        backend: v1::Backend::Ring.into(),
        world_size: 2,
        peers: vec![peer(0), peer(1)],
        rendezvous_timeout_ms: 60_000,
        secret: (0..32).collect(),
        ..v1::Gang::default()
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

async fn two_ranks_answer() {
    let mut cluster = Cluster::new().await;
    cluster.up().await;
    let [lead, follower] = cluster.ranks.as_mut_slice() else { panic!() };
    lead.rows(3, 6).await;
    let results = lead.session.results(3).await;
    assert!(
        results.iter().all(|result| result.status_code == 200 && result.completion_tokens > 0),
        "{results:?}"
    );
    // The follower's steps are seen as well as the leader's.
    follower
        .session
        .find(|body| match body {
            Body::Progress(progress) => (progress.step > 0).then_some(()),
            _ => None,
        })
        .await;
    for rank in [&mut *follower, &mut *lead] {
        rank.stop(StopMode::FinishStarted, 20_000).await;
    }
    for rank in [lead, follower] {
        let exited = rank.exited().await;
        assert_eq!((exited.class(), exited.exit_code), (ExitClass::Orderly, Some(0)), "{exited:?}");
    }
}

/// Amid rows that would go on for long.
async fn killed(rank: usize) {
    let mut cluster = Cluster::new().await;
    let pids = cluster.up().await;
    cluster.ranks[0].rows(2, 100_000).await;
    let generates = |body: &Body| match body {
        Body::Progress(progress) => (progress.generated_tokens > 4).then_some(()),
        _ => None,
    };
    cluster.ranks[0].session.find(generates).await;
    signal(pids[rank], Signal::SIGKILL);
    let at = Instant::now();
    let exited = cluster.ranks[1 - rank].exited().await;
    assert!(at.elapsed() < NOTICED_WITHIN, "{:?}", at.elapsed());
    assert_eq!(exited.class(), ExitClass::LinkFault, "{exited:?}");
    let gone = cluster.ranks[rank].exited().await;
    assert_eq!((gone.class(), gone.signal), (ExitClass::Signalled, Some(9)));
    println!("the other rank ended {:?} after SIGKILL of rank {rank}: {}", at.elapsed(), exited.first_error);
}

async fn nobody_comes() {
    let mut cluster = Cluster::new().await;
    cluster.gang.rendezvous_timeout_ms = 1_000;
    let gang = cluster.gang.clone();
    let lead = &mut cluster.ranks[0];
    assert!(lead.start(gang).await.accepted);
    let exited = lead.exited().await;
    assert_eq!(exited.class(), ExitClass::Apart);
    assert!(
        exited.first_error.starts_with("rank 1 of 2 did not come to 127.0.0.1:"),
        "{}",
        exited.first_error
    );
    assert!(!exited.killed_while_loaded);
}

/// A first SIGTERM is for rank 0 to act on. Where that is stopped, the second one ends the follower, and nobody needs
/// SIGKILL but the one that is stopped.
async fn gently_without_leader() {
    let mut cluster = Cluster::new().await;
    let pids = cluster.up().await;
    signal(pids[0], Signal::SIGSTOP);
    cluster.ranks[1].stop(StopMode::Kill, 4_000).await;
    let exited = cluster.ranks[1].exited().await;
    assert_eq!((exited.class(), exited.exit_code), (ExitClass::Orderly, Some(0)), "{exited:?}");
    cluster.ranks[0].stop(StopMode::Kill, 100).await;
    let exited = cluster.ranks[0].exited().await;
    assert_eq!((exited.class(), exited.killed_while_loaded), (ExitClass::Killed, true), "{exited:?}");
}
