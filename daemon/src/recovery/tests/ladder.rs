//! Down the ladder at once, up again when it is worth it; and the fallback model.

use super::{
    gangs::{cluster, cluster_in},
    kit::*,
    learning::busy,
};
use crate::{
    model::{Checkpoint, FallbackPolicy, JobId, JobRecord, Mode, NodeId, RowIx, WorkerKey},
    recovery::*,
};

pub(super) type Sessions = Vec<(&'static str, SessionId)>;

/// What fits one node of 100 GB, run as somebody asked.
pub(super) fn asked(mode: Mode) -> JobRecord {
    let mut job = record(1, 10_000);
    job.spec.mode = Some(mode);
    job
}

pub(super) fn start_all(kit: &mut Kit, effects: &[Effect]) -> Vec<(String, WorkerKey)> {
    let workers = started(effects);
    for (node, worker) in &workers {
        let _ = kit.ready(node, *worker);
    }
    workers
}

pub(super) fn pull_cable(kit: &mut Kit, node: &str, is_up: bool) -> Vec<Effect> {
    let mut facts = kit.machines[node].clone();
    for interface in &mut facts.interfaces {
        interface.usable = is_up;
    }
    kit.observe(node, facts)
}

/// Every worker told to end does.
pub(super) fn obey(kit: &mut Kit, effects: &[Effect], class: ExitClass) -> Vec<Effect> {
    let stops = stopped(effects);
    stops.into_iter().flat_map(|(node, worker, _)| kit.exit(&node, worker, class)).collect()
}

/// A pipeline at work that somebody asked for, on nodes that could hold the model whole.
fn pipeline() -> (Kit, Sessions, Vec<(String, WorkerKey)>) {
    pipeline_that_loads(5)
}

fn pipeline_that_loads(ms: u64) -> (Kit, Sessions, Vec<(String, WorkerKey)>) {
    pipeline_in(Kit::new(), ms)
}

fn pipeline_in(kit: Kit, load_ms: u64) -> (Kit, Sessions, Vec<(String, WorkerKey)>) {
    let (mut kit, sessions) = cluster_in(kit, &[100, 100]);
    kit.load_ms = load_ms;
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    assert_eq!((ranks.len(), kit.job(1).plan.as_ref().unwrap().mode), (2, Mode::Pipeline));
    (kit, sessions, ranks)
}

/// The same, fallen to independent workers over a lost cable, which is back.
pub(super) fn fallen() -> (Kit, Sessions) {
    fallen_after(5)
}

/// The same in a kit that is set up already.
pub(super) fn fallen_in(kit: Kit) -> (Kit, Sessions) {
    fall(pipeline_in(kit, 5))
}

/// The same with a model that takes so long to load.
pub(super) fn fallen_after(load_ms: u64) -> (Kit, Sessions) {
    fall(pipeline_that_loads(load_ms))
}

fn fall((mut kit, sessions, _): (Kit, Sessions, Vec<(String, WorkerKey)>)) -> (Kit, Sessions) {
    let effects = pull_cable(&mut kit, "b", false);
    assert_eq!(stopped(&effects).len(), 2, "the gang ends at once");
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    let workers = start_all(&mut kit, &effects);
    assert_eq!(workers.len(), 2, "and its nodes go on alone in the same moment");
    let plan = kit.job(1).plan.clone().unwrap();
    assert_eq!(plan.mode, Mode::Independent);
    let why: Vec<&str> = plan.reasons.iter().map(|reason| reason.rule).collect();
    assert!(why.contains(&"down-the-ladder"), "{plan:#?}");
    let _ = pull_cable(&mut kit, "b", true);
    (kit, sessions)
}

#[test]
fn a_lost_link_is_answered_with_independent_workers_and_the_way_up_is_taken_when_it_has_held() {
    let (mut kit, sessions) = fallen();
    let effects = kit.wait(60_000, &sessions);
    assert_eq!(stopped(&effects), [], "the link must hold first, and then the way up for a minute");
    let effects = kit.wait(15_000, &sessions);
    let modes: Vec<StopMode> = stopped(&effects).into_iter().map(|(.., mode)| mode).collect();
    assert_eq!(modes, [StopMode::Checkpoint; 2]);
    assert!(events(&effects).contains(&"climbing"));
    assert_eq!(started(&effects), [], "all workers end first");

    let mut effects = obey(&mut kit, &effects, ExitClass::Orderly);
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    let plan = kit.job(1).plan.clone().unwrap();
    assert_eq!(plan.mode, Mode::Pipeline);
    let _ = kit.wait(100, &sessions);
    let plan = kit.job(1).plan.clone().unwrap();
    let why = plan.reasons.iter().find(|reason| reason.rule == "climbed").expect("why it was worth it");
    assert!(why.text.contains("from independent workers to a pipeline over ring"), "{}", why.text);
    assert!(why.text.contains("pay for loading"), "{}", why.text);
}

#[test]
fn each_change_doubles_the_wait_for_the_next() {
    let (mut kit, sessions) = fallen();
    let effects = kit.wait(75_000, &sessions);
    let mut effects = obey(&mut kit, &effects, ExitClass::Orderly);
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    let effects = pull_cable(&mut kit, "b", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    let _ = start_all(&mut kit, &effects);
    let _ = pull_cable(&mut kit, "b", true);
    assert_eq!(stopped(&kit.wait(110_000, &sessions)), [], "it would have climbed by now");
    assert!(!stopped(&kit.wait(40_000, &sessions)).is_empty());
}

/// A row of the job is answered each tenth of a second.
pub(super) fn answer_rows(kit: &mut Kit, sessions: &Sessions, rows: std::ops::Range<u32>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for row in rows {
        let worker = WorkerKey { job: JobId(1), epoch: kit.job(1).record.epoch, rank: 0 };
        let committed = committed_row(worker, RowGrant { row: RowIx(row), attempt: 1 }, 0);
        effects.extend(kit.tell(Event::Committed {
            node: "a".into(),
            rows: vec![committed],
            totals: vec![],
        }));
        // And all take steps.
        let key = |of: &Worker| WorkerKey { job: JobId(1), epoch: of.epoch, rank: of.rank };
        let at_work: Vec<(NodeId, WorkerKey)> =
            kit.job(1).workers.iter().map(|(node, of)| (node.clone(), key(of))).collect();
        for (node, worker) in at_work {
            let news = busy(worker, 0, u64::from(row) + 1);
            effects.extend(kit.tell(Event::Progress { node, news }));
        }
        effects.extend(kit.wait(100, sessions));
    }
    effects
}

#[test]
fn a_few_rows_do_not_pay_for_a_load() {
    let (mut kit, sessions) = fallen_after(60_000);
    let effects = answer_rows(&mut kit, &sessions, 0..9_900);
    assert!(events(&effects).contains(&"climbing"), "thousands of rows pay for it");

    let (mut kit, sessions) = fallen_after(60_000);
    let _ = answer_rows(&mut kit, &sessions, 0..400);
    for row in 400..9_000 {
        let worker = WorkerKey { job: JobId(1), epoch: kit.job(1).record.epoch, rank: 0 };
        let row = committed_row(worker, RowGrant { row: RowIx(row), attempt: 1 }, 0);
        let _ = kit.tell(Event::Committed { node: "a".into(), rows: vec![row], totals: vec![] });
    }
    let effects = answer_rows(&mut kit, &sessions, 9_000..9_700);
    assert_eq!(stopped(&effects), [], "a thousand rows are done in less than two loads");
}

/// Loads take a minute, 1,500 rows at ten a second two and a half: worth it; with what an unknown load is taken for, not.
#[test]
fn a_load_is_taken_as_measured() {
    let (mut kit, sessions, _) = pipeline_that_loads(60_000);
    let effects = pull_cable(&mut kit, "b", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    let _ = answer_rows(&mut kit, &sessions, 0..7_700);
    let _ = pull_cable(&mut kit, "b", true);
    let _ = answer_rows(&mut kit, &sessions, 7_700..8_500);
    let climbed = !kit.job(1).workers.values().all(|worker| worker.stopping.is_none());
    assert!(climbed, "{:?} rows a second", kit.job(1).rows_per_s(kit.now.mono_ms));
}

/// With its last rows in work there is nothing that another way could do sooner.
#[test]
fn a_job_that_has_handed_out_its_last_row_stays_as_it_is() {
    let (mut kit, sessions) = fallen();
    let leased: Vec<u32> = kit.job(1).leases.keys().map(|row| row.0).collect();
    for row in (0..10_000).filter(|row| !leased.contains(row)) {
        let worker = WorkerKey { job: JobId(1), epoch: kit.job(1).record.epoch, rank: 0 };
        let row = committed_row(worker, RowGrant { row: RowIx(row), attempt: 1 }, 0);
        let _ = kit.tell(Event::Committed { node: "a".into(), rows: vec![row], totals: vec![] });
    }
    assert_eq!(kit.job(1).rows_waiting(), 0);
    assert_eq!(stopped(&kit.wait(90_000, &sessions)), []);
}

#[test]
fn no_change_begins_while_a_worker_is_still_loading() {
    let (mut kit, sessions, _) = pipeline_that_loads(5);
    let effects = pull_cable(&mut kit, "b", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    let workers = started(&effects);
    let _ = kit.ready(&workers[0].0, workers[0].1);
    let _ = pull_cable(&mut kit, "b", true);
    assert_eq!(stopped(&kit.wait(90_000, &sessions)), []);
    let _ = kit.ready(&workers[1].0, workers[1].1);
    assert_eq!(stopped(&kit.wait(20_000, &sessions)), [], "and now it has to hold as long as ever");
}

/// At its first start a job waits a moment for the nodes that the mode needs which somebody asked for; one that has run
/// goes on at once with what there is.
#[test]
fn only_the_first_start_waits_for_nodes_that_have_not_come_yet() {
    let (mut kit, sessions) = cluster(&[100]);
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(4_800, &sessions));
    assert_eq!(started(&effects), [], "another node may come");
    let effects = kit.wait(300, &sessions);
    assert_eq!(started(&effects).len(), 1, "none has: one runs it whole");

    let (mut kit, mut sessions) = cluster(&[100]);
    let _ = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    kit.found.insert("b".to_owned(), large_model());
    kit.machines.insert("b".to_owned(), machine("10.0.0.2", 100));
    sessions.push(("b", kit.connect("b").0));
    let effects = kit.wait(2_200, &sessions);
    assert_eq!(start_all(&mut kit, &effects).len(), 2, "it came in time");
    let effects = pull_cable(&mut kit, "b", false);
    assert_eq!(started(&obey(&mut kit, &effects, ExitClass::Killed)).len(), 2, "at once");
}

#[test]
fn nobody_takes_the_nodes_of_a_job_that_is_changing() {
    let (mut kit, sessions) = fallen();
    let _ = kit.tell(Event::JobAccepted(record(2, 500)));
    let effects = kit.wait(75_000, &sessions);
    let effects = obey(&mut kit, &effects, ExitClass::Orderly);
    assert_eq!(started(&effects), []);
    let effects = kit.wait(2_100, &sessions);
    let jobs: Vec<u64> = started(&effects).into_iter().map(|(_, worker)| worker.job.0).collect();
    assert_eq!(jobs, [1, 1]);
}

#[test]
fn a_link_that_is_about_to_be_relied_on_again_is_waited_for() {
    let (mut kit, sessions, ranks) = pipeline();
    // Rank 0 lost the other one, and nothing else is known: the link is up, and to prove itself again.
    let effects = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    let mut effects = obey(&mut kit, &effects, ExitClass::LinkFault);
    effects.extend(kit.wait(9_000, &sessions));
    assert_eq!(started(&effects), [], "loading whole models would take longer");
    let effects = kit.wait(4_000, &sessions);
    assert_eq!(started(&effects).len(), 2);
    assert_eq!(kit.job(1).plan.as_ref().unwrap().mode, Mode::Pipeline);
}

#[test]
fn independent_is_kept_to_when_it_was_asked_for() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Independent)));
    effects.extend(kit.wait(60_000, &sessions));
    assert_eq!(started(&effects), [], "it fits none whole");
}

/// A pipeline at work on two nodes, and a third that could hold the model whole.
fn joined_by_a_larger_node() -> (Kit, Sessions) {
    let (mut kit, mut sessions) = cluster(&[60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 10_000)));
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    kit.found.insert("c".to_owned(), large_model());
    kit.machines.insert("c".to_owned(), machine("10.0.0.3", 300));
    sessions.push(("c", kit.connect("c").0));
    (kit, sessions)
}

#[test]
fn a_node_that_holds_it_whole_is_changed_to_when_it_comes_and_says_why() {
    let (mut kit, sessions) = joined_by_a_larger_node();
    let effects = kit.wait(61_000, &sessions);
    let mut effects = obey(&mut kit, &effects, ExitClass::Orderly);
    effects.extend(kit.wait(2_100, &sessions));
    let workers = start_all(&mut kit, &effects);
    assert_eq!(workers.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["c"]);
}

/// The time it was not there counts for nothing.
#[test]
fn a_better_way_that_went_must_hold_anew() {
    let (mut kit, sessions) = joined_by_a_larger_node();
    assert_eq!(stopped(&kit.wait(50_000, &sessions)), []);
    let _ = kit.tell(Event::Drain { node: "c".into(), drain: true });
    let _ = kit.wait(1_000, &sessions);
    let _ = kit.tell(Event::Drain { node: "c".into(), drain: false });
    assert_eq!(stopped(&kit.wait(55_000, &sessions)), []);
    assert_eq!(stopped(&kit.wait(6_000, &sessions)).len(), 2);
}

pub(super) fn with_fallback(policy: FallbackPolicy) -> (Kit, Sessions, Vec<(String, WorkerKey)>) {
    let (mut kit, sessions) = cluster(&[60, 60]);
    kit.models.insert("small".to_owned(), small_model());
    let mut job = record(1, 10_000);
    job.spec.fallback_model = Some("small".to_owned());
    job.spec.fallback_policy = policy;
    let mut effects = kit.tell(Event::JobAccepted(job));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    assert_eq!(ranks.len(), 2, "its own model first");
    (kit, sessions, ranks)
}

fn models_started(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { command: Command::StartWorker { model, .. }, .. } => Some(model.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn the_fallback_model_answers_as_soon_as_its_policy_allows_and_goes_when_its_own_can_run_again() {
    let (mut kit, sessions, _) = with_fallback(FallbackPolicy::AfterMs(120_000));
    let effects = pull_cable(&mut kit, "b", false);
    let mut effects = obey(&mut kit, &effects, ExitClass::Killed);
    effects.extend(kit.wait(119_000, &sessions));
    assert_eq!(started(&effects), []);
    assert!(events(&effects).contains(&"job-parked"));
    let plan = kit.job(1).plan.clone().unwrap();
    let later =
        plan.reasons.iter().find(|reason| reason.rule == "fallback-later").expect("what is waited for");
    assert!(later.text.starts_with("in 1 s the fallback model small takes over"), "{}", later.text);
    let effects = kit.wait(2_000, &sessions);
    assert_eq!(models_started(&effects), ["small", "small"]);
    let small = start_all(&mut kit, &effects);
    let _ = kit.wait(100, &sessions);
    assert!(kit.job(1).parked.is_none());
    let plan = kit.job(1).plan.clone().unwrap();
    assert!(plan.reasons.iter().any(|reason| reason.rule == "fallback"), "{plan:#?}");

    // What one model has begun is of no use to the other.
    let lease = kit.job(1).leases.iter().find(|(_, lease)| lease.node.as_str() == "a");
    let (row, attempt) = lease.map(|(row, lease)| (*row, lease.attempt)).unwrap();
    let checkpoint = Checkpoint { tokens: vec![5, 6], ..Checkpoint::default() };
    let _ = kit.tell(Event::Progress {
        node: "a".into(),
        news: ProgressNews {
            worker: small[0].1,
            phase: WorkerPhase::Decode,
            step: 1,
            step_age_ms: 0,
            active_rows: 1,
            prompt_tokens: 1,
            generated_tokens: 2,
            peak_memory_bytes: 0,
            checkpoints: vec![CheckpointNews { row, attempt, offset: 0, checkpoint }],
        },
    });
    assert!(kit.job(1).resume_point(row, small[0].1.epoch).is_some());
    assert!(kit.job(1).resume_point(row, small[1].1.epoch.next()).is_none());

    let _ = pull_cable(&mut kit, "b", true);
    let effects = kit.wait(90_000, &sessions);
    let mut effects = obey(&mut kit, &effects, ExitClass::Orderly);
    effects.extend(kit.wait(2_100, &sessions));
    let models = models_started(&effects);
    assert_eq!((models.len(), models.contains(&"small")), (2, false));
}

#[test]
fn never_and_at_once_are_kept_to() {
    for (policy, expected) in [(FallbackPolicy::Never, 0), (FallbackPolicy::AtOnce, 2)] {
        let (mut kit, sessions, _) = with_fallback(policy);
        let effects = pull_cable(&mut kit, "b", false);
        let mut effects = obey(&mut kit, &effects, ExitClass::Killed);
        effects.extend(kit.wait(3_600_000, &sessions));
        assert_eq!(models_started(&effects).len(), expected, "{policy}");
    }
}

#[test]
fn a_restarted_controller_knows_which_model_its_workers_run() {
    let (mut kit, sessions, _) = with_fallback(FallbackPolicy::AtOnce);
    let effects = pull_cable(&mut kit, "b", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    let small = start_all(&mut kit, &effects);
    let mut after = restarted(&kit, policy_with_a_network());
    for (node, worker) in &small {
        let _ = comes_back(&mut after, node, *worker, 1);
    }
    let _ = after.wait(200, &sessions);
    assert!(after.job(1).rung().is_some_and(|rung| rung.fallback));
    let told = after.machine.explain_job(after.now, JobId(1)).unwrap();
    let rung = told.iter().find(|ruling| ruling.rule == "rung").unwrap();
    assert!(!rung.holds && rung.sentence.ends_with("so a controller before this one chose"), "{rung:?}");
}

/// A controller started anew beside these nodes, which has heard of nobody yet.
fn restarted(before: &Kit, policy: Policy) -> Kit {
    let mut after = Kit::new();
    after.now = before.now;
    after.found.clone_from(&before.found);
    after.models.clone_from(&before.models);
    after.machines.clone_from(&before.machines);
    let _ = after.tell(Event::PolicyChanged(policy));
    let jobs = vec![replayed(before.job(1).record.clone(), &[])];
    let _ = after.tell(Event::Started { jobs, nodes: vec![], repairs: vec![], remains: vec![] });
    after
}

/// A node is back with its worker of this many ranks.
fn comes_back(kit: &mut Kit, node: &str, worker: WorkerKey, world_size: u32) -> SessionId {
    let report = ReportedWorker { world_size, ..reported(worker, &[]) };
    let (session, _) = kit.hello(node, "agent-1", vec![report]);
    let _ = kit.replayed(node, session);
    session
}

#[test]
fn what_a_new_controller_found_at_work_is_no_first_start_when_its_link_is_lost() {
    let (before, _, ranks) = pipeline();
    let mut kit = restarted(&before, policy_with_a_network());
    let sessions = vec![
        ("a", comes_back(&mut kit, "a", ranks[0].1, 2)),
        ("b", comes_back(&mut kit, "b", ranks[1].1, 2)),
    ];
    assert_eq!(stopped(&kit.wait(500, &sessions)), []);
    let effects = pull_cable(&mut kit, "b", false);
    let mut effects = obey(&mut kit, &effects, ExitClass::Killed);
    effects.extend(kit.wait(200, &sessions));
    assert_eq!(started(&effects).len(), 2, "at once, on each node alone");
}

#[test]
fn no_change_begins_before_the_nodes_of_a_new_controller_are_back() {
    let (before, _) = fallen();
    let policy = Policy { climb_settle_ms: 100, ..policy_with_a_network() };
    let adopt_ms = policy.adopt_grace_ms;
    let mut kit = restarted(&before, policy);
    let on = |node: &str| before.job(1).workers[&NodeId::from(node)].epoch;
    let worker = WorkerKey { job: JobId(1), epoch: on("a"), rank: 0 };
    let mut sessions = vec![("a", comes_back(&mut kit, "a", worker, 1))];
    kit.found.insert("c".to_owned(), large_model());
    kit.machines.insert("c".to_owned(), machine("10.0.0.3", 100));
    sessions.push(("c", kit.connect("c").0));
    assert_eq!(stopped(&kit.wait(adopt_ms - 500, &sessions)), [], "b may be back with a worker yet");
    let effects = kit.wait(1_000, &sessions);
    let on_c = start_all(&mut kit, &effects);
    assert_eq!(on_c.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(stopped(&kit.wait(2_000, &sessions)).len(), 2, "a and c can make the pipeline");
}

/// How long the way up is said to take to load.
fn load_of_the_way_up(kit: &Kit) -> Option<u64> {
    kit.machine.way_up(kit.now, JobId(1)).map(|way| way.load_ms)
}

#[test]
fn a_load_never_measured_is_taken_for_the_slowest_that_was() {
    // Of the way itself, though another one was slower; of another way, where this one is not known; of none.
    for (of_the_way_ms, of_another_ms, expected_ms) in
        [(7_000, 9_000, 7_000), (0, 9_000, 9_000), (0, 0, rules::UNKNOWN_LOAD_MS)]
    {
        let (mut kit, sessions, _) = pipeline_that_loads(of_the_way_ms);
        kit.load_ms = of_another_ms;
        let effects = pull_cable(&mut kit, "b", false);
        let effects = obey(&mut kit, &effects, ExitClass::Killed);
        assert_eq!(start_all(&mut kit, &effects).len(), 2);
        let _ = pull_cable(&mut kit, "b", true);
        let _ = kit.wait(30_000, &sessions);
        assert_eq!(load_of_the_way_up(&kit), Some(expected_ms), "{of_the_way_ms} and {of_another_ms} ms");
    }
}
