//! Workers start, report, hang and end: what is believed of whom, and how long each is given.

use super::{
    gangs::{Sessions, at_work, cluster},
    kit::*,
    ladder::start_all,
};
use crate::{
    model::{
        Backend, Checkpoint, Fault, Incident, JobId, LearnedModel, Mode, NodeId, Pace, RowIx, Way, WorkerKey,
    },
    recovery::*,
};

/// What a step may take where steps take a tenth of a second, and what is given where nothing is known.
const STEP_MS: u64 = 9_500;
const UNKNOWN_MS: u64 = 120_000;

/// A job at work on nodes of so many gigabytes. Of its model the steps are known, and of its prompts nothing.
fn with_known_steps(budgets_gb: &[u64]) -> (Kit, Sessions, Vec<(String, WorkerKey)>) {
    let (mut kit, sessions) = cluster(budgets_gb);
    let ModelFound::Files { fingerprint, .. } = large_model() else { panic!("a model") };
    let pace = |mode, backend, ranks| Pace {
        way: Way { mode, backend, ranks },
        load_ms: 0,
        decode_step_us: 100_000,
        decode_seen: 100,
        prefill_ms: Default::default(),
        prefill_seen: 0,
    };
    let paces = vec![pace(Mode::Independent, None, 1), pace(Mode::Pipeline, Some(Backend::Ring), 2)];
    let learned = LearnedModel { paces, ..LearnedModel::new(&fingerprint) };
    let _ = kit.tell(Event::Remembered { models: vec![learned], incidents: vec![] });
    let mut effects = kit.tell(Event::JobAccepted(record(1, 1_000)));
    effects.extend(kit.wait(2_100, &sessions));
    (kit, sessions, started(&effects))
}

fn report(kit: &mut Kit, node: &str, worker: WorkerKey, phase: WorkerPhase, step: u64) -> Vec<Effect> {
    report_with(kit, node, worker, phase, step, Vec::new())
}

fn report_with(
    kit: &mut Kit,
    node: &str,
    worker: WorkerKey,
    phase: WorkerPhase,
    step: u64,
    checkpoints: Vec<CheckpointNews>,
) -> Vec<Effect> {
    let news = ProgressNews {
        worker,
        phase,
        step,
        step_age_ms: 0,
        active_rows: 0,
        prompt_tokens: 0,
        generated_tokens: 0,
        peak_memory_bytes: 0,
        checkpoints,
    };
    kit.tell(Event::Progress { node: node.into(), news })
}

/// Why workers are told to end, and whether their stack is asked for.
fn reasons(effects: &[Effect]) -> Vec<(&str, bool)> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Send { command: Command::StopWorker { reason, ask_for_stack, .. }, .. } => {
            Some((reason.as_str(), *ask_for_stack))
        }
        _ => None,
    });
    told.collect()
}

/// The newest incident of a node.
fn incident_of<'a>(kit: &'a Kit, node: &str) -> &'a Incident {
    let of_node = |incident: &&Incident| incident.node.as_ref().map(NodeId::as_str) == Some(node);
    kit.machine.incidents().find(of_node).expect("an incident")
}

#[test]
fn a_worker_is_given_no_more_time_for_a_prompt_that_another_reads() {
    let (mut kit, sessions, workers) = with_known_steps(&[100, 100]);
    for (node, worker) in &workers {
        let _ = kit.ready(node, *worker);
    }
    let _ = report(&mut kit, "a", workers[0].1, WorkerPhase::Decode, 1);
    let _ = report(&mut kit, "b", workers[1].1, WorkerPhase::Prefill, 1);
    assert_eq!(stopped(&kit.wait(STEP_MS, &sessions)), []);
    let effects = kit.wait(100, &sessions);
    assert_eq!(stopped(&effects), [("a".to_owned(), workers[0].1, StopMode::Kill)]);
    assert_eq!(reasons(&effects), [("the worker of j1 on a (epoch 1) took no step for 9.5 s", true)]);
}

#[test]
fn where_one_rank_reads_a_prompt_all_of_its_gang_are_given_the_time() {
    let (mut kit, sessions, ranks) = with_known_steps(&[60, 60]);
    for (node, worker) in &ranks {
        let _ = kit.ready(node, *worker);
    }
    let _ = report(&mut kit, "a", ranks[0].1, WorkerPhase::Decode, 1);
    let _ = report(&mut kit, "b", ranks[1].1, WorkerPhase::Prefill, 1);
    assert_eq!(stopped(&kit.wait(UNKNOWN_MS, &sessions)), []);
    assert_eq!(stopped(&kit.wait(100, &sessions)).len(), 2);
}

#[test]
fn an_idle_worker_is_given_the_time_of_a_prompt_only_when_it_has_rows_to_begin() {
    for (has_rows, budget_ms) in [(true, UNKNOWN_MS), (false, STEP_MS)] {
        let (mut kit, sessions, workers) = with_known_steps(&[100]);
        if !has_rows {
            // What cannot be stored is not handed out.
            let _ = kit.tell(Event::StorageFailed { problem: "full".to_owned() });
        }
        let effects = kit.ready("a", workers[0].1);
        assert_eq!(granted(&effects, "a").is_empty(), !has_rows);
        assert_eq!(stopped(&kit.wait(budget_ms, &sessions)), []);
        assert_eq!(stopped(&kit.wait(100, &sessions)), [("a".to_owned(), workers[0].1, StopMode::Kill)]);
    }
}

#[test]
fn a_worker_that_is_to_end_and_has_nothing_at_work_is_given_the_grace_besides() {
    let (mut kit, sessions) = cluster(&[100]);
    let effects = kit.tell(Event::JobAccepted(record(1, 100)));
    let worker = start_all(&mut kit, &effects)[0].1;
    let effects = kit.tell(Event::Drain { node: "a".into(), drain: true });
    assert_eq!(reasons(&effects), [("it is drained", false)], "no stack: it is no fault");
    let given_ms = UNKNOWN_MS + Policy::default().stop_grace_ms;
    assert_eq!(stopped(&kit.wait(given_ms, &sessions)), []);
    let effects = kit.wait(100, &sessions);
    assert_eq!(reasons(&effects), [("the worker of j1 on a (epoch 1) took no step for 140 s", true)]);
    let _ = kit.wait(5_000, &sessions);
    let _ = kit.exit("a", worker, ExitClass::Killed);
    let incident = incident_of(&kit, "a");
    assert_eq!(
        incident.noticed_after_ms,
        Some(given_ms + 100),
        "from its last step to the notice of the hang"
    );
}

/// How long it took to end after it was told to says nothing of when it went wrong.
#[test]
fn a_rank_that_crashed_is_told_with_the_time_since_its_last_step() {
    let (mut kit, sessions, ranks, _) = at_work();
    let _ = kit.wait(3_000, &sessions);
    let _ = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    let _ = kit.wait(1_000, &sessions);
    let _ = kit.exit("b", ranks[1].1, ExitClass::Crashed);
    let incident = incident_of(&kit, "b");
    assert_eq!((incident.fault, incident.noticed_after_ms), (Fault::WorkerExited, Some(3_000)));
}

#[test]
fn a_worker_that_is_to_end_is_not_kept_by_saying_that_it_is_idle() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 1))))[0].1;
    let grant = granted(&kit.ready("a", worker), "a")[0];
    let _ = kit.result("a", session, worker, grant);
    let _ = kit.committed("a", worker, grant, 1);
    let mut stops = Vec::new();
    for _ in 0..150 {
        let _ = report(&mut kit, "a", worker, WorkerPhase::Idle, 0);
        stops.extend(stopped(&kit.wait(1_000, &[("a", session)])));
    }
    assert_eq!(stops, [("a".to_owned(), worker, StopMode::Kill)]);
}

#[test]
fn a_rank_that_takes_no_step_hangs_though_no_row_is_its_own() {
    let (mut kit, sessions, ranks, _) = at_work();
    let mut stops = Vec::new();
    for second in 1..=UNKNOWN_MS / 1_000 {
        let _ = report(&mut kit, "a", ranks[0].1, WorkerPhase::Decode, second);
        let _ = report(&mut kit, "b", ranks[1].1, WorkerPhase::Decode, 1);
        stops.extend(stopped(&kit.wait(1_000, &sessions)));
    }
    assert!(stops.contains(&("b".to_owned(), ranks[1].1, StopMode::Kill)), "{stops:?}");
}

#[test]
fn a_started_worker_is_known_by_its_process_and_loads() {
    let (mut kit, _) = cluster(&[100]);
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 100))))[0].1;
    let _ = kit.tell(Event::WorkerStarted { node: "a".into(), worker, pid: 4_321 });
    let known = &kit.job(1).workers[&NodeId::from("a")];
    assert_eq!((known.pid, known.phase), (4_321, WorkerPhase::Loading));
}

#[test]
fn a_late_word_of_another_launch_or_rank_makes_no_worker_ready() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let before = started(&kit.tell(Event::JobAccepted(record(1, 100))))[0].1;
    let _ = kit.exit("a", before, ExitClass::Crashed);
    let worker = started(&kit.wait(500, &[("a", session)]))[0].1;
    assert_ne!(before.epoch, worker.epoch);
    assert_eq!(granted(&kit.ready("a", before), "a"), []);
    assert_eq!(granted(&kit.ready("a", WorkerKey { rank: 1, ..worker }), "a"), []);
    assert!(!granted(&kit.ready("a", worker), "a").is_empty());
}

#[test]
fn an_incident_ends_with_a_new_worker_there_and_not_elsewhere() {
    let (mut kit, [(on_a, first, _), (on_b, second, _)]) = two_at_work(100);
    let _ = kit.exit("a", first, ExitClass::Crashed);
    let again = started(&kit.exit("b", second, ExitClass::Orderly));
    let _ = kit.ready("b", again[0].1);
    assert_eq!(incident_of(&kit, "a").closed_unix_ms, None, "b has one, a has none yet");
    let again = started(&kit.wait(500, &[("a", on_a), ("b", on_b)]));
    let _ = kit.ready("a", again[0].1);
    assert_eq!(incident_of(&kit, "a").outcome, "a new worker is ready");
}

#[test]
fn an_incident_does_not_end_with_a_worker_of_another_job() {
    let mut kit = Kit::new();
    let _ = kit.connect("a");
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 100))))[0].1;
    let _ = kit.tell(Event::JobAccepted(record(2, 100)));
    let others = started(&kit.exit("a", worker, ExitClass::Crashed));
    assert_eq!(others[0].1.job, JobId(2), "the first one waits until it is tried again");
    let _ = kit.ready("a", others[0].1);
    assert_eq!(incident_of(&kit, "a").closed_unix_ms, None);
}

/// Whether a report of these tokens of a row is written down.
fn is_kept(kit: &mut Kit, node: &str, worker: WorkerKey, (row, attempt): (RowIx, u32)) -> bool {
    let checkpoint = Checkpoint { tokens: vec![5, 6], ..Checkpoint::default() };
    let news = vec![CheckpointNews { row, attempt, offset: 0, checkpoint }];
    let effects = report_with(kit, node, worker, WorkerPhase::Decode, 1, news);
    effects.iter().any(|effect| matches!(effect, Effect::SaveCheckpoints { .. }))
}

#[test]
fn only_the_holder_of_a_row_tells_how_far_it_is() {
    let (mut kit, _, ranks, rows_out) = at_work();
    let (row, attempt) = (rows_out[0].row, rows_out[0].attempt);
    assert!(!is_kept(&mut kit, "b", ranks[1].1, (row, attempt)), "rows are with rank 0");
    assert!(!is_kept(&mut kit, "a", ranks[0].1, (row, attempt + 1)), "another time that it was given out");
    assert!(is_kept(&mut kit, "a", ranks[0].1, (row, attempt)));

    // The result of the worker before is being stored: the row is not with the new one.
    let (mut kit, [(session, worker, grants), _]) = two_at_work(100);
    let _ = kit.result("a", session, worker, grants[0]);
    let _ = kit.exit("a", worker, ExitClass::Crashed);
    let worker = started(&kit.wait(500, &[("a", session)]))[0].1;
    let given = granted(&kit.ready("a", worker), "a");
    assert!(!is_kept(&mut kit, "a", worker, (grants[0].row, grants[0].attempt)));
    assert!(is_kept(&mut kit, "a", worker, (given[0].row, given[0].attempt)));
}
