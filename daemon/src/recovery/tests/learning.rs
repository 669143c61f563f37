//! What runs teach: the answer of a whole model, and speeds.

use super::kit::*;
use crate::{
    model::{KnownAnswer, LearnedModel, Measurement, Mode, WorkerKey},
    recovery::*,
};

/// Nodes a, b, … with so many gigabytes, a large model and this platform each.
fn cluster(nodes: &[(u64, &str)]) -> (Kit, Vec<(&'static str, SessionId)>) {
    let mut kit = Kit::new();
    let _ = kit.tell(Event::PolicyChanged(policy_with_a_network()));
    let mut sessions = Vec::new();
    for (name, ((budget_gb, platform), last)) in ["a", "b", "c"].into_iter().zip(nodes.iter().zip(1..)) {
        kit.found.insert(name.to_owned(), large_model());
        let machine = machine(&format!("10.0.0.{last}"), *budget_gb);
        kit.machines.insert(name.to_owned(), NodeFacts { platform: (*platform).to_owned(), ..machine });
        sessions.push((name, kit.connect(name).0));
    }
    (kit, sessions)
}

fn recorded(effects: &[Effect]) -> Vec<LearnedModel> {
    let models = effects.iter().filter_map(|effect| match effect {
        Effect::RecordModel(model) => Some((**model).clone()),
        _ => None,
    });
    models.collect()
}

/// What gangs that were started must answer.
fn expected(effects: &[Effect]) -> Vec<Vec<u32>> {
    let starts = effects.iter().filter_map(|effect| match effect {
        Effect::Send { command: Command::StartWorker { gang: Some(gang), .. }, .. } => {
            Some(gang.expected_answer.clone())
        }
        _ => None,
    });
    starts.collect()
}

fn fingerprint() -> String {
    let ModelFound::Files { fingerprint, .. } = large_model() else { panic!("a model") };
    fingerprint
}

fn known(platform: &str) -> LearnedModel {
    let answer = KnownAnswer { tokens: vec![7, 8], platform: platform.to_owned() };
    LearnedModel { known_answer: Some(answer), ..LearnedModel::new(&fingerprint()) }
}

#[test]
fn a_whole_model_s_answer_is_kept_once_and_another_one_is_told() {
    let (mut kit, _) = cluster(&[(100, "m"), (100, "m")]);
    let workers = started(&kit.tell(Event::JobAccepted(record(1, 100))));
    kit.canary_tokens = vec![7, 8];
    let effects = kit.ready("a", workers[0].1);
    let learned = recorded(&effects).pop().unwrap();
    assert_eq!(learned.known_answer, known("m").known_answer);
    kit.canary_tokens = vec![7, 9];
    let effects = kit.ready("b", workers[1].1);
    assert_eq!(recorded(&effects), []);
    assert!(events(&effects).contains(&"canary-differs"));
}

#[test]
fn a_pipeline_must_answer_what_a_whole_model_did_on_such_nodes() {
    let starts = |nodes: &[(u64, &str)], of: &str, mode| {
        let (mut kit, sessions) = cluster(nodes);
        let _ = kit.tell(Event::Remembered { models: vec![known(of)], incidents: vec![] });
        let mut job = record(1, 100);
        job.spec.mode = mode;
        let mut effects = kit.tell(Event::JobAccepted(job));
        effects.extend(kit.wait(2_100, &sessions));
        expected(&effects)
    };
    let none = vec![Vec::<u32>::new(); 2];
    assert_eq!(starts(&[(60, "m"), (60, "m")], "m", None), [[7, 8], [7, 8]]);
    assert_eq!(starts(&[(60, "m"), (60, "x")], "m", None), none, "another chip may round otherwise");
    assert_eq!(starts(&[(60, "m"), (60, "m")], "x", None), none, "and so may the one that answered");
    assert_eq!(starts(&[(60, "m"), (60, "m")], "m", Some(Mode::Tensor)), none, "other sums");
}

pub(super) fn busy(worker: WorkerKey, generated_tokens: u64, step: u64) -> ProgressNews {
    ProgressNews {
        worker,
        phase: WorkerPhase::Decode,
        step,
        step_age_ms: 0,
        active_rows: 8,
        prompt_tokens: 0,
        generated_tokens,
        peak_memory_bytes: 0,
        checkpoints: Vec::new(),
    }
}

#[test]
fn a_speed_is_measured_while_the_same_workers_are_busy() {
    let (mut kit, sessions) = cluster(&[(100, "m"), (100, "m")]);
    let workers = started(&kit.tell(Event::JobAccepted(record(1, 1_000))));
    for (node, worker) in &workers {
        let _ = kit.ready(node, *worker);
    }
    let run = |kit: &mut Kit, seconds: std::ops::Range<u64>, who: &[usize]| {
        let mut effects = Vec::new();
        for second in seconds {
            for index in who {
                let (node, worker) = &workers[*index];
                let news = busy(*worker, second * [20, 40][*index], second + 1);
                effects.extend(kit.tell(Event::Progress { node: node.as_str().into(), news }));
            }
            effects.extend(kit.wait(1_000, &sessions));
        }
        recorded(&effects).into_iter().filter(|model| !model.measurements.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(run(&mut kit, 0..30, &[0]), [], "one of two is no picture of both");
    assert_eq!(run(&mut kit, 30..90, &[0, 1]), [], "not a minute yet");
    let learned = run(&mut kit, 90..93, &[0, 1]);
    let speed = Measurement { mode: Mode::Independent, backend: None, ranks: 1, tokens_per_s: 30 };
    assert_eq!(learned[0].measurements, [speed], "of one worker, the mean of both");
    assert_eq!(learned[0].fingerprint, fingerprint());
}

/// The very first steps are given the time that is not known to be too much; later ones five times their own.
#[test]
fn a_worker_is_given_what_its_steps_are_known_to_take() {
    let (mut kit, sessions) = cluster(&[(100, "m")]);
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 1_000))))[0].1;
    let _ = kit.ready("a", worker);
    let step = |kit: &mut Kit, number: u64, step_ms: u64| {
        let mut effects = kit.wait(step_ms, &sessions);
        let news = busy(worker, number * 8, number);
        effects.extend(kit.tell(Event::Progress { node: "a".into(), news }));
        effects
    };
    // Steps of 4 s; the first takes 40 s, for it compiles.
    assert_eq!(stopped(&step(&mut kit, 1, 40_000)), []);
    for number in 2..250 {
        assert_eq!(stopped(&step(&mut kit, number, 4_000)), []);
    }
    let effects = kit.wait(60_000, &sessions);
    let [(_, _, StopMode::Kill)] = stopped(&effects)[..] else { panic!("hung: {:?}", stopped(&effects)) };
    let told = events(&effects);
    assert!(told.contains(&"worker-silent"), "{told:?}");
    let learned = kit.machine.learned(&fingerprint()).unwrap().paces[0];
    assert!((4_000_000..4_200_000).contains(&learned.decode_step_us), "{learned:?}");

    // The step that hung comes to its end as its worker is ended: that is not how long steps take.
    let _ = kit.wait(1_500, &sessions);
    let late = ProgressNews { prompt_tokens: 20, ..busy(worker, 2_000, 250) };
    let _ = kit.tell(Event::Progress { node: "a".into(), news: late });
    assert_eq!(kit.machine.learned(&fingerprint()).unwrap().paces[0], learned);
}

/// What a worker does that only finishes its rows is not told: it may read a prompt, which takes far longer than a step.
#[test]
fn a_worker_that_finishes_its_rows_is_given_the_time_of_a_prompt() {
    let (mut kit, sessions) = cluster(&[(100, "m")]);
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 1_000))))[0].1;
    let _ = kit.ready("a", worker);
    for number in 1..250 {
        let _ = kit.wait(100, &sessions);
        let _ = kit.tell(Event::Progress { node: "a".into(), news: busy(worker, number * 8, number) });
    }
    let stops = stopped(&kit.tell(Event::Drain { node: "a".into(), drain: true }));
    assert_eq!(stops, [("a".to_owned(), worker, StopMode::FinishStarted)]);
    let news = ProgressNews { phase: WorkerPhase::Stopping, ..busy(worker, 2_000, 249) };
    let _ = kit.tell(Event::Progress { node: "a".into(), news });
    let prompt_ms = Policy::default().step_budget_ms - 1_000;
    assert_eq!(stopped(&kit.wait(prompt_ms, &sessions)), [], "far more than five steps");
    assert_eq!(stopped(&kit.wait(2_000, &sessions)), [("a".to_owned(), worker, StopMode::Kill)]);
}

/// Rows so short that there is a prompt in every report.
#[test]
fn a_job_of_short_rows_teaches_the_pace_of_generation_as_well() {
    let (mut kit, sessions) = cluster(&[(100, "m")]);
    let mut job = record(1, 10_000);
    job.lengths.note(200, Some(20));
    let worker = started(&kit.tell(Event::JobAccepted(job)))[0].1;
    let _ = kit.ready("a", worker);
    for report in 1..60 {
        let _ = kit.wait(200, &sessions);
        let news = ProgressNews { prompt_tokens: report * 100, ..busy(worker, report * 40, report * 8) };
        let _ = kit.tell(Event::Progress { node: "a".into(), news });
    }
    let effects = kit.wait(9_500, &sessions);
    assert_eq!(stopped(&effects), []);
    assert_eq!(stopped(&kit.wait(300, &sessions)).len(), 1, "ten seconds, not two minutes");
}

#[test]
fn a_controller_that_was_absent_holds_nobody_silent() {
    let (mut kit, sessions) = cluster(&[(100, "m")]);
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 1_000))))[0].1;
    let _ = kit.ready("a", worker);
    let _ = kit.wait(1_000, &sessions);
    kit.now.mono_ms += 3_600_000;
    kit.now.unix_ms += 3_600_000;
    let effects = kit.wait(100, &[]);
    assert_eq!(events(&effects), ["controller-was-absent"]);
    let effects = kit.wait(4_500, &[]);
    assert_eq!(events(&effects), [""; 0], "and it has its five seconds again");
    assert!(events(&kit.wait(600, &[])).contains(&"node-silent"));
}

/// Measured twice as fast by the pipeline, what would fit one node is spread.
#[test]
fn a_measurement_outranks_the_rule_at_the_next_start() {
    let (mut kit, sessions) = cluster(&[(100, "m"), (100, "m")]);
    let speed = |mode, backend, ranks, tokens_per_s| Measurement { mode, backend, ranks, tokens_per_s };
    let measured = LearnedModel {
        measurements: vec![
            speed(Mode::Independent, None, 1, 10),
            speed(Mode::Pipeline, Some(crate::model::Backend::Ring), 2, 40),
        ],
        ..LearnedModel::new(&fingerprint())
    };
    let _ = kit.tell(Event::Remembered { models: vec![measured], incidents: vec![] });
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks: Vec<u32> = started(&effects).iter().map(|(_, worker)| worker.rank).collect();
    assert_eq!(ranks, [0, 1]);
    let plan = kit.job(1).plan.clone().unwrap();
    assert!(plan.reasons.iter().any(|reason| reason.rule == "measured"), "{plan:#?}");
}
