//! The agent's own life: one at a time, ended in order, killed, and started again.

use std::process::{Command, Stdio};

use crate::support::{Controller, Site, is_alive, until};
use nightshift_proto::v1::{self, ExitClass, agent_message::Body, worker_event};
use nix::sys::signal::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_it_hands_back_tokens_and_ends_in_order() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let mut agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let pid = session.ready_worker(1).await;
    session.rows(1, &[(1, "hold")]).await;
    session
        .find(|body| {
            matches!(body, Body::Progress(progress) if !progress.checkpoints.is_empty()).then_some(())
        })
        .await;
    agent.signal(Signal::SIGTERM);
    let mut tokens = Vec::new();
    let exited = session
        .find(|body| match body {
            Body::Progress(progress) => {
                tokens.extend(progress.checkpoints.iter().map(|row| (row.offset, row.tokens.clone())));
                None
            }
            Body::WorkerEvent(v1::WorkerEvent {
                event: Some(worker_event::Event::Exited(exited)), ..
            }) => Some(exited.clone()),
            _ => None,
        })
        .await;
    assert_eq!(exited.class(), ExitClass::Orderly);
    assert_eq!(tokens.last(), Some(&(0, vec![1, 2, 3])));
    assert!(session.next().await.is_none_or(|body| matches!(body, Body::Heartbeat(_))));
    assert_eq!(agent.exit().await.code(), Some(0));
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_it_ends_in_order_too() {
    let site = Site::new();
    // A port nobody listens on.
    let address = Controller::start().await.kill().await;
    let mut agent = site.agent(address, &[]);
    until("the agent is up", || site.state_dir().join("spool/state.json").exists().then_some(())).await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_in_the_same_directory_is_refused() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let agent = site.agent(controller.address, &[]);
    controller.session().await.begin().await;
    let second = site.command(controller.address).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with(&format!(
            "cluster-agent: another cluster-agent (process {}) already uses the state directory",
            agent.pid()
        )),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_workers_are_gone_after_the_next_start_however_stubborn() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let agent = site.agent(controller.address, &["stubborn"]);
    let mut session = controller.session().await;
    session.begin().await;
    let stubborn = session.ready_worker(1).await;
    agent.sigkill();
    drop(session);
    assert!(is_alive(stubborn), "it ignores the end of its input");

    // A process that has nothing to do with us, under the number of a worker that was.
    let mut foreign = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let record = format!(
        r#"{{"job_id":7,"epoch":99,"rank":0,"pid":{},"start_time":1,"boot_id":{}}}"#,
        foreign.id(),
        serde_json::to_string(
            &std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim()
        )
        .unwrap()
    );
    std::fs::write(site.state_dir().join("workers/j7-e99-r0.json"), record).unwrap();

    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    let (hello, _) = session.begin().await;
    assert!(!is_alive(stubborn));
    assert_eq!(hello.workers.len(), 0);
    let exited = session.exited(1).await;
    assert_eq!((exited.class(), exited.killed_while_loaded), (ExitClass::Leftover, true));
    assert!(foreign.try_wait().unwrap().is_none(), "it was left alone");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_makes_no_sense_is_refused_in_one_sentence() {
    let site = Site::new();
    let config = site.dir.path().join("agent.toml");
    std::fs::write(&config, "max_worker = 3\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
        .args(["run", "--config"])
        .arg(&config)
        .arg("--state-dir")
        .arg(site.state_dir())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("unknown field `max_worker`"), "{said}");

    let output = site.command("10.1.2.3:7400".parse().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("10.1.2.3:7400 is not on this machine, and this version has no transport security"),
        "{said}"
    );
}

#[test]
fn the_probe_prints_one_json_object() {
    let output = Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
        .args(["probe", "--json", "--boot-id", "b"])
        .output()
        .unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["boot_id"], "b");
    assert!(seen["interfaces"].as_array().unwrap().iter().any(|interface| interface["loopback"] == true));
}

#[test]
fn a_missing_runtime_is_said_with_what_to_do() {
    let site = Site::new();
    let output = Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
        .args(["runtime", "check", "--json", "--runtime-dir"])
        .arg(site.dir.path().join("absent"))
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &status["ready"]), (Some(1), &serde_json::Value::Bool(false)));
    assert!(status["problem"].as_str().unwrap().ends_with("run `cluster-agent runtime install`"), "{status}");
}
