//! An agent that is root starts its workers as another user.
//!
//! Where the tests do not run as root, or there is no user `nobody`, or no Python or no temporary directory that is open to it, the cases are counted as
//! ignored.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test that uses it")]

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
#[path = "../agent/support.rs"]
mod support;

use std::{
    fs,
    future::Future,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Completion, Trial};
use nightshift_agent::worker::account::Account;
use nightshift_proto::v1::{self, agent_message::Body, controller_message, worker_event::Event};
use nix::unistd::geteuid;
use support::{Agent, Controller, Session, Site, free_port, gang, worker};

const NAME: &str = "nobody";
const PYTHON: &str = "/usr/bin/python3";

fn main() -> ExitCode {
    let trials = vec![
        case("workers_run_as_the_user_and_see_nothing_of_the_agent", as_the_user),
        case("a_rank_can_read_its_files_and_nobody_else", a_rank),
        case("what_is_closed_to_the_user_is_named_before_a_night", closed),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn case<F: Future<Output = ()>>(name: &str, body: impl FnOnce(Account) -> F + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("only root can start processes as another user"));
        }
        let Ok(Some(account)) = Account::configured(NAME) else {
            return Ok(Completion::ignored_with("there is no user nobody here"));
        };
        if !Path::new(PYTHON).exists() || account.closed_at(Path::new(PYTHON)).is_some() {
            return Ok(Completion::ignored_with("there is no /usr/bin/python3 that everybody can run"));
        }
        if let Some(at) = account.closed_at(&std::env::temp_dir()) {
            return Ok(Completion::ignored_with(format!("{} is closed to the user nobody", at.display())));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(body(account));
        Ok(Completion::Completed)
    })
}

/// A site whose directory everybody can pass, and the stand-in's command, which everybody can run.
fn open_site() -> (Site, Vec<String>) {
    let site = Site::new();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(site.dir.path(), 0o755);
    let program = site.dir.path().join("fake_worker.py");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agent/fake_worker.py");
    fs::write(&program, fs::read(source).unwrap()).unwrap();
    set(&program, 0o644);
    (site, [PYTHON, "-S", program.to_str().unwrap()].map(str::to_owned).to_vec())
}

async fn in_session() -> (Site, Controller, Agent, Session) {
    let (site, command) = open_site();
    let mut controller = Controller::start().await;
    let agent = site.agent_with(controller.address, &command, &format!("worker_user = {NAME:?}"));
    let mut session = controller.session().await;
    session.begin().await;
    (site, controller, agent, session)
}

fn shared(site: &Site) -> PathBuf {
    site.dir.path().join("state-workers")
}

async fn who(session: &mut Session, epoch: u64) -> serde_json::Value {
    session.rows(epoch, &[(1, "who")]).await;
    let body: serde_json::Value = serde_json::from_slice(&session.results(1).await[0].body).unwrap();
    body["echo"].clone()
}

async fn as_the_user(account: Account) {
    let (site, _controller, _agent, mut session) = in_session().await;
    session.ready_worker(1).await;
    let who = who(&mut session, 1).await;
    assert_eq!(who["uid"], serde_json::json!([account.uid, account.uid]), "{who}");
    assert_eq!(who["gid"], serde_json::json!([account.gid, account.gid]), "{who}");
    assert_eq!(who["groups"], serde_json::json!([]), "none of root's");
    assert_eq!(who["home"].as_str(), account.home.to_str());
    assert_eq!(who["cwd"].as_str(), shared(&site).canonicalize().unwrap().to_str());

    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&site.state_dir()), 0o700, "prompts and answers lie there");
    assert_eq!(mode(&shared(&site)), 0o711);
    let code = fs::read_dir(shared(&site).join("worker-code")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(account.closed_at(&code.join("main.py")), None);
}

async fn a_rank(account: Account) {
    let (site, _controller, _agent, mut session) = in_session().await;
    let ring = free_port();
    session
        .send(controller_message::Body::StartWorker(v1::StartWorker {
            command_id: 1,
            worker: Some(worker(3)),
            model: "tiny".into(),
            gang: Some(gang(ring, free_port())),
            ..v1::StartWorker::default()
        }))
        .await;
    let started = session.command_result(1).await;
    assert!(started.accepted, "{started:?}");
    let hosts = who(&mut session, 3).await["hosts"].clone();
    assert_eq!(hosts, serde_json::json!([[format!("127.0.0.1:{ring}")], [format!("127.0.0.2:{ring}")]]));
    let own = shared(&site).join("gangs/j7-e3-r0");
    for (path, mode) in [(own.clone(), 0o700), (own.join("hosts.json"), 0o600)] {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (account.uid, mode), "{}", path.display());
    }
    session.stop(3, v1::StopMode::Checkpoint, 5_000).await;
    session.event(3, |event| matches!(event, Event::Exited(_)).then_some(())).await;
    support::until("the files of the launch are gone", || (!own.exists()).then_some(())).await;
}

async fn closed(_: Account) {
    let (site, command) = open_site();
    let mut controller = Controller::start().await;
    let agent = site.agent_with(controller.address, &command, &format!("worker_user = {NAME:?}"));
    let mut session = controller.session().await;
    session.begin().await;
    let home = site.dir.path().join("ada");
    let model = home.join("model");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let name = model.display().to_string();
    session
        .send(controller_message::Body::InspectModel(v1::InspectModel { request_id: 1, model: name.clone() }))
        .await;
    let report = session
        .find(|body| match body {
            Body::ModelInspected(inspected) => inspected.report.clone(),
            _ => None,
        })
        .await;
    assert_eq!(
        report.problem,
        format!(
            "workers cannot read the model {name}: {} is closed to nobody, whom workers run as",
            home.canonicalize().unwrap().display()
        )
    );
    drop(agent);

    // Not even the directory that workers share can be reached.
    fs::set_permissions(site.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut agent = site.agent_with(controller.address, &command, &format!("worker_user = {NAME:?}"));
    assert_eq!(agent.exit().await.code(), Some(1));
    let log = fs::read_to_string(site.dir.path().join("log")).unwrap();
    let dir = site.dir.path().display();
    assert!(
        log.contains(&format!("{dir} is closed to nobody, whom workers run as; open it (chmod o+x)")),
        "{log}"
    );
}
