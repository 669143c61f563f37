//! Workers as the controller sees them, from start to end and in every kind of trouble.

use std::time::{Duration, Instant};

use crate::support::{Controller, Site, is_alive, until, worker};
use nightshift_proto::v1::{self, ExitClass, StopMode, agent_message::Body, controller_message};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_answers_its_rows_and_ends_when_asked() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    let (hello, replayed) = session.begin().await;
    assert_eq!((hello.node_id.as_str(), hello.workers.len(), replayed.len()), ("n1", 0, 0));
    assert!(hello.runtime.unwrap().ready);

    let pid = session.ready_worker(1).await;
    session.rows(1, &[(10, "answer"), (11, "note")]).await;
    let results = session.results(2).await;
    assert_eq!(crate::support::numbers(&results), [(1, 10), (2, 11)]);
    assert_eq!(&results[0].body[..], br#"{"echo":"answer"}"#);
    assert_eq!((results[0].status_code, results[0].worker), (200, Some(worker(1))));
    session.ack(2).await;

    assert!(session.stop(1, StopMode::FinishStarted, 0).await.accepted);
    let exited = session.exited(1).await;
    assert_eq!((exited.class(), exited.exit_code), (ExitClass::Orderly, Some(0)));
    assert_eq!(exited.log_tail, ["a note about note"]);
    assert!(!is_alive(pid));
    assert_eq!(std::fs::read_dir(site.state_dir().join("workers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_noticed_at_once() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let mut delays = Vec::new();
    for epoch in 1..=5 {
        let pid = session.ready_worker(epoch).await;
        let killed_at = Instant::now();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let exited = session.exited(epoch).await;
        delays.push(killed_at.elapsed());
        assert_eq!((exited.class(), exited.signal), (ExitClass::Signalled, Some(9)));
        assert_eq!((exited.first_error.as_str(), exited.killed_while_loaded), ("ended by SIGKILL", false));
    }
    delays.sort();
    println!("from SIGKILL to the controller's knowledge: {delays:?}");
    assert!(delays[2] < Duration::from_millis(100), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_comes_with_its_first_error_after_the_last_answer() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    session.rows(1, &[(1, "answer"), (2, "crash")]).await;
    let mut answered = false;
    let exited = session
        .find(|body| match body {
            Body::RowResults(results) => {
                answered = results.results[0].row == 1;
                None
            }
            Body::WorkerEvent(v1::WorkerEvent {
                event: Some(v1::worker_event::Event::Exited(exited)),
                ..
            }) => Some(exited.clone()),
            _ => None,
        })
        .await;
    assert!(answered, "the exit overtook the answer");
    assert_eq!((exited.class(), exited.exit_code), (ExitClass::LinkFault, Some(1)));
    assert_eq!(exited.first_error, "RuntimeError: [ring] connection to a peer was lost");
    assert_eq!(exited.log_tail.len(), 3);

    session.ready_worker(2).await;
    session.rows(2, &[(2, "fatal")]).await;
    let exited = session.exited(2).await;
    assert_eq!(exited.class(), ExitClass::OutOfMemory);
    assert_eq!(exited.first_error, "there is not enough memory for this row");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_breaks_the_protocol_is_ended_with_the_evidence() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let pid = session.ready_worker(1).await;
    session.rows(1, &[(1, "garbage")]).await;
    let exited = session.exited(1).await;
    assert_eq!(exited.class(), ExitClass::Crashed);
    assert!(exited.first_error.ends_with("Downloading shards: 40%"), "{}", exited.first_error);
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_worker_may_see_is_answered_here() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    let rows = vec![v1::Row { row: 3, attempt: 1, request: "{\"a\":\n".into(), ..Default::default() }];
    session.send(controller_message::Body::Rows(v1::Rows { worker: Some(worker(1)), rows })).await;
    let result = session.results(1).await.remove(0);
    assert_eq!((result.row, result.status_code), (3, 400));
    assert!(String::from_utf8_lossy(&result.body).contains("it is more than one line"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_stop_brings_the_tokens_before_the_exit() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    let resumed = v1::Row {
        row: 5,
        attempt: 2,
        request: r#"{"custom_id":"hold"}"#.into(),
        resume_tokens: vec![8, 9],
        ..Default::default()
    };
    session
        .send(controller_message::Body::Rows(v1::Rows { worker: Some(worker(1)), rows: vec![resumed] }))
        .await;
    let news = session.find(first_checkpoint).await;
    assert_eq!(
        (news.row, news.attempt, news.offset, news.tokens.as_slice()),
        (5, 2, 2, [1, 2, 3].as_slice())
    );

    session.stop(1, StopMode::Checkpoint, 10_000).await;
    let mut last = None;
    let exited = session
        .find(|body| {
            last = first_checkpoint(body).or(last.take());
            match body {
                Body::WorkerEvent(v1::WorkerEvent {
                    event: Some(v1::worker_event::Event::Exited(exited)),
                    ..
                }) => Some(exited.clone()),
                _ => None,
            }
        })
        .await;
    assert_eq!(exited.class(), ExitClass::Orderly);
    let last = last.expect("the tokens come once more, whole");
    assert_eq!((last.offset, last.tokens.as_slice()), (0, [8, 9, 1, 2, 3].as_slice()));
}

fn first_checkpoint(body: &Body) -> Option<v1::RowCheckpoint> {
    match body {
        Body::Progress(progress) => progress.checkpoints.first().cloned(),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_stop_is_killed_and_that_is_said() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &["stubborn"]);
    let mut session = controller.session().await;
    session.begin().await;
    for (epoch, mode) in [(1, StopMode::Kill), (2, StopMode::Checkpoint)] {
        let pid = session.ready_worker(epoch).await;
        session.stop(epoch, mode, 200).await;
        let exited = session.exited(epoch).await;
        assert_eq!((exited.class(), exited.signal), (ExitClass::Killed, Some(9)));
        assert!(exited.killed_while_loaded && !is_alive(pid));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_holds_the_pipe_open_does_not_hide_the_exit() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &["orphan"]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    session.rows(1, &[(1, "answer"), (2, "crash")]).await;
    assert_eq!(session.results(1).await[0].row, 1);
    assert_eq!(session.exited(1).await.class(), ExitClass::LinkFault);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_be_started_is_an_exit() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent_with_command(controller.address, &["/nonexistent/python".to_owned()]);
    let mut session = controller.session().await;
    session.begin().await;
    assert!(session.start_worker(1).await.accepted);
    let exited = session.exited(1).await;
    assert_eq!(exited.class(), ExitClass::SpawnFailed);
    assert!(exited.first_error.contains("No such file"), "{}", exited.first_error);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_launches_are_refused_even_by_the_next_agent() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(3).await;
    assert!(session.start_worker(3).await.accepted, "the same command twice is no second start");
    let refused = session.start_worker(2).await;
    assert_eq!(
        (refused.accepted, refused.problem.as_str()),
        (false, "launch 2 of job j7 is not newer than launch 3, which was started here")
    );
    agent.sigkill();

    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    assert!(!session.start_worker(3).await.accepted);
    assert!(session.start_worker(4).await.accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_in_words() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let stop = session.stop(9, StopMode::Kill, 0).await;
    assert_eq!((stop.accepted, stop.problem.as_str()), (false, "there is no such worker here"));
    session.send(controller_message::Body::Drain(v1::Drain { draining: true })).await;
    assert_eq!(session.start_worker(1).await.problem, "this node is draining");
    session.send(controller_message::Body::Drain(v1::Drain { draining: false })).await;
    assert!(session.start_worker(2).await.accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_workers_and_agent_can_be_read_and_followed() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    session.rows(1, &[(1, "note-one")]).await;
    session.results(1).await;
    let request = v1::LogRequest {
        request_id: 1,
        source: v1::LogSource::Workers.into(),
        job_id: 7,
        tail_lines: 10,
        follow: true,
        ..Default::default()
    };
    let line = |body: &Body| match body {
        Body::LogLines(lines) => lines.lines.first().cloned(),
        _ => None,
    };
    session.send(controller_message::Body::LogRequest(request)).await;
    let first = session.find(line).await;
    assert_eq!(
        (first.source.as_str(), first.text.as_str(), first.node_id.as_str()),
        ("j7/e1/r0", "a note about note-one", "n1")
    );
    session.rows(1, &[(2, "note-two")]).await;
    assert_eq!(session.find(line).await.text, "a note about note-two");

    let own = v1::LogRequest {
        request_id: 2,
        source: v1::LogSource::Agent.into(),
        tail_lines: 1_000,
        ..Default::default()
    };
    session.send(controller_message::Body::LogRequest(own)).await;
    let started = session
        .find(|body| match body {
            Body::LogLines(lines) if lines.request_id == 2 => {
                Some(lines.lines.iter().any(|line| line.text.contains("a worker has been started")))
            }
            _ => None,
        })
        .await;
    assert!(started);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_row_is_not_held_any_more() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    session.rows(1, &[(1, "hold"), (2, "hold")]).await;
    session.find(first_checkpoint).await;
    session
        .send(controller_message::Body::CancelRows(v1::CancelRows { worker: Some(worker(1)), rows: vec![1] }))
        .await;
    // An answer behind it shows that the cancellation has been carried out.
    session.rows(1, &[(3, "answer")]).await;
    session.results(1).await;
    drop(session);
    let mut session = controller.session().await;
    let hello = session.welcome().await;
    let held: Vec<_> = hello.workers[0].rows.iter().map(|row| (row.row, row.tokens, row.started)).collect();
    assert_eq!(held, [(2, 3, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_is_reported_silent_and_still_obeys_sigkill() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    let pid = session.ready_worker(1).await;
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGSTOP).unwrap();
    session
        .find(|body| match body {
            Body::Progress(progress) => (progress.step_age_ms >= 1_500).then_some(()),
            _ => None,
        })
        .await;
    session.stop(1, StopMode::Checkpoint, 100).await;
    assert_eq!(session.exited(1).await.class(), ExitClass::Killed);
    until("the process is gone", || (!is_alive(pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_agents_environment_reaches_a_worker_but_what_it_needs() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    session.rows(1, &[(1, "env")]).await;
    let body: serde_json::Value = serde_json::from_slice(&session.results(1).await[0].body).unwrap();
    let names: Vec<&str> = body["echo"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    // Whatever wraps the interpreter may add names of its own; these were the agent's.
    for name in ["MLX_RANK", "JACCL_RING", "PYTHONPATH", "RUST_LOG"] {
        assert!(!names.contains(&name), "{names:?}");
    }
    assert!(names.contains(&"PATH") && names.contains(&"LANG"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_reaches_the_controller_within_milliseconds() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    session.ready_worker(1).await;
    let mut round_trips = Vec::new();
    for row in 0..50 {
        let sent_at = Instant::now();
        session.rows(1, &[(row, "answer")]).await;
        session.results(1).await;
        round_trips.push(sent_at.elapsed());
    }
    round_trips.sort();
    println!("row to worker and answer back: median {:?}, worst {:?}", round_trips[25], round_trips[49]);
    assert!(round_trips[25] < Duration::from_millis(50), "{round_trips:?}");
}
