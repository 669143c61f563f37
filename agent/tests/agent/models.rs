//! Questions about models, and what is refused of a gang before anything is started; the workers are stand-ins.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test that uses it")]

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use crate::support::{Agent, Controller, Session, Site, fake_worker, free_port, gang, until, worker};
use nightshift_proto::v1::{self, ExitClass, StopMode, agent_message::Body, controller_message};
use prost::Message as _;

/// A model of one layer whose weights are a hole of this many bytes.
fn model(dir: &Path, bytes: u64) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama"}"#)
        .unwrap();
    let header = format!(
        r#"{{"model.layers.0.mlp.up_proj.weight":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#
    );
    let file = dir.join("model.safetensors");
    fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    fs::File::options().write(true).open(file).unwrap().set_len(8 + header.len() as u64 + bytes).unwrap();
}

async fn ask(session: &mut Session, request_id: u64, model: &str) -> v1::ModelReport {
    let request = v1::InspectModel { request_id, model: model.into() };
    session.send(controller_message::Body::InspectModel(request)).await;
    session
        .find(|body| match body {
            Body::ModelInspected(inspected) if inspected.request_id == request_id => inspected.report.clone(),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_reported_over_the_session_and_what_is_missing_is_said() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let dir = site.dir.path().join("models/m");
    model(&dir, 1 << 40);
    let roots = format!("model_roots = [{:?}]\nmemory_budget_mib = 1024", site.dir.path().join("models"));
    let _agent = site.agent_with(controller.address, &fake_worker(&[]), &roots);
    let mut session = controller.session().await;
    let (hello, _) = session.begin().await;
    let capabilities = hello.capabilities.unwrap();
    assert_eq!(capabilities.memory_budget_bytes, 1 << 30);
    assert_eq!(capabilities.backends, [v1::Backend::None as i32, v1::Backend::Ring as i32]);

    let report = ask(&mut session, 41, dir.to_str().unwrap()).await;
    assert_eq!((report.problem.as_str(), report.fingerprint.len()), ("", 32));
    assert_eq!(report.tensors.iter().map(|tensor| tensor.bytes).collect::<Vec<_>>(), [1 << 40]);
    let outside = ask(&mut session, 42, "/").await;
    assert!(outside.problem.starts_with("/ is not a model directory under model_roots"), "{outside:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_keep_no_heartbeat_waiting() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    for request_id in 0..40 {
        let request = v1::InspectModel { request_id, model: "org/model".into() };
        session.send(controller_message::Body::InspectModel(request)).await;
    }
    let (mut answers, mut beats) = (0, 0);
    session
        .find(|body| {
            match body {
                Body::ModelInspected(inspected) => {
                    answers += 1;
                    assert!(inspected.report.as_ref().unwrap().not_here_yet, "{inspected:?}");
                }
                Body::Heartbeat(heartbeat) => {
                    beats += 1;
                    assert!(heartbeat.lag_ms < 1_000, "{heartbeat:?}");
                }
                _ => {}
            }
            (answers == 40 && beats > 0).then_some(())
        })
        .await;
}

#[test]
fn the_command_line_tells_a_person_a_program_and_the_planner() {
    let site = Site::new();
    let dir = site.dir.path().join("m");
    model(&dir, 5_000_000_000);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
            .current_dir(site.dir.path())
            .env("HOME", site.dir.path())
            .env_remove("HF_HOME")
            .arg("model")
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    let (code, text, _) = run(&["m"]);
    let text = String::from_utf8(text).unwrap();
    assert_eq!(code, Some(0));
    for words in ["LlamaForCausalLM", "weights       5.0 GB", "  model.layers     5.0 GB"] {
        assert!(text.contains(words), "{text}");
    }
    let (_, json, _) = run(&["m", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["weight_bytes"].as_u64(), json["files"].as_u64()), (Some(5_000_000_000), Some(1)));
    let (_, bytes, _) = run(&["m", "--protobuf"]);
    let report = v1::ModelReport::decode(&bytes[..]).unwrap();
    assert_eq!((report.model.as_str(), report.tensors.len()), ("m", 1));
    for (name, says) in [
        ("absent", "there is no model directory absent on this node"),
        (
            "org/absent",
            "the model org/absent is no directory on this node and not in its cache of the model hub yet",
        ),
    ] {
        let (code, out, said) = run(&[name]);
        assert_eq!((code, out.len(), said), (Some(1), 0, format!("cluster-agent: {says}\n")));
    }
}

async fn start(session: &mut Session, epoch: u64, rank: u32, gang: v1::Gang) -> v1::CommandResult {
    let command_id = 100 * epoch + u64::from(rank);
    session
        .send(controller_message::Body::StartWorker(v1::StartWorker {
            command_id,
            worker: Some(v1::WorkerId { rank, ..worker(epoch) }),
            model: "tiny".into(),
            gang: Some(gang),
            ..v1::StartWorker::default()
        }))
        .await;
    session.command_result(command_id).await
}

async fn site_in_session() -> (Site, Controller, Agent, Session) {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    // Left behind by an earlier agent.
    fs::create_dir_all(site.state_dir().join("gangs/j1-e1-r0")).unwrap();
    let agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    (site, controller, agent, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_refused_and_costs_no_launch() {
    let (_site, _controller, _agent, mut session) = site_in_session().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (ring, control) in [(port, free_port()), (free_port(), port)] {
        let refused = start(&mut session, 3, 0, gang(ring, control)).await;
        assert_eq!(
            (refused.accepted, refused.problem),
            (false, format!("port {port} on 127.0.0.1 is in use"))
        );
    }
    drop(taken);
    assert!(
        start(&mut session, 3, 0, gang(port, free_port())).await.accepted,
        "the same launch, once it is free"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_gets_its_variables_and_private_files_and_leaves_nothing() {
    let (site, mut controller, _agent, mut session) = site_in_session().await;
    let gangs = site.state_dir().join("gangs");
    assert_eq!(fs::read_dir(&gangs).unwrap().count(), 0, "those of an earlier agent are gone");
    let ring = free_port();
    let given = gang(ring, free_port());
    assert!(start(&mut session, 3, 0, given.clone()).await.accepted);
    let second = start(&mut session, 3, 1, given.clone()).await;
    assert_eq!(
        second.problem,
        "rank 0 of launch 3 of job j7 runs on this node, and a node has one rank of a gang"
    );
    let other_node = start(&mut session, 4, 1, given.clone()).await;
    assert_eq!(other_node.problem, "rank 1 of the gang is for node n2, and this is n1");

    session.rows(3, &[(1, "env")]).await;
    let body: serde_json::Value = serde_json::from_slice(&session.results(1).await[0].body).unwrap();
    let mut mlx: Vec<&str> =
        body["echo"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    mlx.retain(|name| name.starts_with("MLX_") || name.starts_with("JACCL_"));
    assert_eq!(mlx, ["MLX_HOSTFILE", "MLX_RANK"]);
    let own = gangs.join("j7-e3-r0");
    assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        fs::read_to_string(own.join("hosts.json")).unwrap(),
        format!(r#"[["127.0.0.1:{ring}"],["127.0.0.2:{ring}"]]"#)
    );
    // A controller that comes back learns that this is a rank.
    drop(session);
    let mut session = controller.session().await;
    let (hello, _) = session.begin().await;
    assert_eq!((hello.workers[0].worker, hello.workers[0].world_size), (Some(worker(3)), 2));
    session.stop(3, StopMode::Checkpoint, 10_000).await;
    assert_eq!(session.exited(3).await.class(), ExitClass::Orderly);
    until("its files are gone", || (!own.exists()).then_some(())).await;
}
