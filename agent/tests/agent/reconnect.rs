//! The controller goes away and comes back: nothing finished is lost, nothing running is disturbed.

use crate::support::{Controller, Site, fake_worker, is_alive, numbers, until, worker};
use nightshift_proto::v1::{self, ExitClass, StopMode, agent_message::Body, controller_message};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_comes_again_and_the_rest_never() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let pid = session.ready_worker(1).await;
    session.rows(1, &[(1, "answer"), (2, "answer"), (3, "answer"), (9, "hold")]).await;
    assert_eq!(numbers(&session.results(3).await), [(1, 1), (2, 2), (3, 3)]);
    session.ack(2).await;
    // A message behind the acknowledgement shows that it has been taken.
    session.stop(99, StopMode::Kill, 0).await;

    // The controller dies and comes back, as another process would.
    let address = controller.kill().await;
    drop(session);
    let mut controller = Controller::start_at(address).await;
    let mut session = controller.session().await;
    let (hello, replayed) = session.begin().await;
    assert_eq!(numbers(&replayed), [(3, 3)]);
    assert_eq!(hello.spooled_results, 1);
    let running = &hello.workers[0];
    assert_eq!((running.pid, running.rows.len(), running.rows[0].row), (pid, 1, 9));
    assert_eq!(running.options.unwrap().max_batch_rows, 8);
    let again = session
        .find(|body| match body {
            Body::Progress(progress) => progress.checkpoints.first().cloned(),
            _ => None,
        })
        .await;
    assert_eq!((again.row, again.offset, again.tokens.as_slice()), (9, 0, [1, 2, 3].as_slice()));
    session.rows(1, &[(4, "answer")]).await;
    assert_eq!(numbers(&session.results(1).await), [(4, 4)]);
    session.ack(4).await;
    session.stop(99, StopMode::Kill, 0).await;
    drop(session);

    let mut session = controller.session().await;
    let (hello, replayed) = session.begin().await;
    assert_eq!((hello.spooled_results, replayed.len(), hello.workers[0].pid), (0, 0, pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_workers_answer_on_and_the_next_agent_still_has_it() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let pid = session.ready_worker(1).await;
    let rows: Vec<(u32, &str)> = (0..500).map(|row| (row, "answer")).collect();
    session.rows(1, &rows).await;
    let address = controller.kill().await;
    drop(session);

    let spool = site.state_dir().join("spool");
    until("all answers are spooled", || {
        let bytes: u64 = std::fs::read_dir(&spool)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".seg"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        (bytes > 500 * 40).then_some(())
    })
    .await;
    // Its worker has answered everything, so the agent may die.
    until("the worker is idle", || is_alive(pid).then_some(())).await;
    agent.sigkill();
    until("the worker ends with its input", || (!is_alive(pid)).then_some(())).await;

    let _agent = site.agent(address, &[]);
    let mut controller = Controller::start_at(address).await;
    let mut session = controller.session().await;
    let (hello, replayed) = session.begin().await;
    assert_eq!((hello.workers.len(), replayed.len() as u64), (0, hello.spooled_results));
    // Which of the last answers had reached the agent when it died is up to chance; those that had are all there, once.
    let expected: Vec<(u64, u32)> =
        (0..u32::try_from(replayed.len()).unwrap()).map(|row| (u64::from(row) + 1, row)).collect();
    assert_eq!(numbers(&replayed), expected);
    assert!(replayed.len() > 300, "{}", replayed.len());
    session.ready_worker(2).await;
    session.rows(2, &[(600, "answer")]).await;
    let next = session.results(1).await;
    assert_eq!(numbers(&next), [(replayed.len() as u64 + 1, 600)], "numbers go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_of_what_was_never_sent_costs_nothing() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    session.ack(1_000).await;
    session.rows(1, &[(1, "answer")]).await;
    session.results(1).await;
    drop(session);
    let (_, replayed) = controller.session().await.begin().await;
    assert_eq!(numbers(&replayed), [(1, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_while_the_controller_was_away_is_told_with_its_tokens() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let pid = session.ready_worker(1).await;
    session.rows(1, &[(1, "hold"), (2, "answer")]).await;
    session.results(1).await;
    let address = controller.kill().await;
    drop(session);
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    until("the agent has noticed", || {
        (std::fs::read_dir(site.state_dir().join("workers")).unwrap().count() == 0).then_some(())
    })
    .await;

    let mut controller = Controller::start_at(address).await;
    let mut session = controller.session().await;
    let (hello, replayed) = session.begin().await;
    assert_eq!((hello.workers.len(), numbers(&replayed)), (0, vec![(1, 2)]));
    let tokens = session
        .find(|body| match body {
            Body::Progress(progress) => progress.checkpoints.first().map(|row| row.tokens.clone()),
            Body::WorkerEvent(_) => panic!("the exit came before the tokens"),
            _ => None,
        })
        .await;
    assert_eq!(tokens, [1, 2, 3]);
    assert_eq!(session.exited(1).await.class(), ExitClass::Signalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_welcome_is_given_up() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let silent = controller.session().await;
    let mut session = controller.session().await;
    session.begin().await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_and_observations_come_by_themselves() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    let (hello, _) = session.begin().await;
    let observation = hello.observation.unwrap();
    assert!(!observation.boot_id.is_empty() && observation.memory.unwrap().total_bytes.is_some());
    let mut beats = 0;
    session
        .find(|body| {
            beats += u32::from(matches!(body, Body::Heartbeat(_)));
            (beats == 3).then_some(())
        })
        .await;
    assert_eq!(worker(1).job_id, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_another_ledger_gets_nothing_of_the_old_one() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    assert_eq!(session.welcome_to("one").await.ledger_id, "");
    let pid = session.ready_worker(5).await;
    session.rows(5, &[(1, "answer"), (2, "hold")]).await;
    session.results(1).await;
    drop(session);

    let mut session = controller.session().await;
    let hello = session.welcome_to("two").await;
    assert_eq!((hello.ledger_id.as_str(), hello.workers.len(), hello.spooled_results), ("one", 1, 1));
    drop(session);
    let mut session = controller.session().await;
    let hello = session.welcome_to("two").await;
    assert_eq!((hello.ledger_id.as_str(), hello.workers.len(), hello.spooled_results), ("two", 0, 0));
    assert!(!is_alive(pid));
    // Launches are counted anew, numbers of results go on.
    session.ready_worker(1).await;
    session.rows(1, &[(1, "answer")]).await;
    assert_eq!(numbers(&session.results(1).await), [(2, 1)]);
    let aside: Vec<_> = std::fs::read_dir(site.state_dir().join("set-aside")).unwrap().flatten().collect();
    assert!(aside.len() == 1 && aside[0].path().join("spool").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_holds_the_worker_up_and_loses_nothing() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent_with(controller.address, &fake_worker(&[]), "spool_max_bytes = 20000");
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    let rows: Vec<(u32, &str)> = (0..2_000).map(|row| (row, "answer")).collect();
    session.rows(1, &rows).await;
    let mut seen = Vec::new();
    while seen.len() < 2_000 {
        let results = session.results(1).await;
        let size: u64 = std::fs::read_dir(site.state_dir().join("spool"))
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.metadata().ok().map(|metadata| metadata.len()))
            .sum();
        assert!(size < 40_000, "{size} bytes");
        session.ack(results.last().unwrap().spool_seq).await;
        seen.extend(numbers(&results));
    }
    let expected: Vec<(u64, u32)> = (0..2_000).map(|row| (u64::from(row) + 1, row)).collect();
    assert_eq!(seen, expected);
}

/// The write that holds the agent up goes into a pipe that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_held_up_does_not_accuse_its_node() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let record = site.state_dir().join("workers/j7-e5-r0.json.tmp");
    mkfifo(&record, Mode::S_IRWXU).unwrap();
    let start = v1::StartWorker {
        command_id: 5,
        worker: Some(worker(5)),
        model: "tiny".into(),
        ..v1::StartWorker::default()
    };
    session.send(controller_message::Body::StartWorker(start)).await;
    session
        .find(|body| match body {
            Body::Heartbeat(heartbeat) => (heartbeat.lag_ms >= 2_000).then_some(()),
            Body::CommandResult(result) => panic!("nothing held it up: {result:?}"),
            _ => None,
        })
        .await;
    let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(record).unwrap()).await.unwrap();
    assert!(text.contains("\"epoch\":5"), "{text}");
    assert!(session.command_result(5).await.accepted);
    session
        .find(|body| match body {
            Body::Heartbeat(heartbeat) => (heartbeat.lag_ms < 1_000).then_some(()),
            _ => None,
        })
        .await;
}
