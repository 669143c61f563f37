//! The machine, driven by the lines a worker writes and by a clock that is only a number.

use nightshift_proto::v1::ExitClass;
use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(20);

fn say(machine: &mut Machine, line: &str, now: Instant) -> Option<Output> {
    machine.on_event(protocol::parse(line.as_bytes()).unwrap(), now).unwrap()
}

fn ready_machine(now: Instant) -> Machine {
    let mut machine = Machine::new(0, 1, now);
    say(&mut machine, r#"{"ev":"hello","protocol":1,"pid":3,"python":"3.11.7","mlx":"0","mlx_lm":"0"}"#, now);
    assert_eq!(machine.phase(), WorkerPhase::Loading);
    let ready =
        r#"{"ev":"ready","load_ms":3,"peak_memory_bytes":1,"has_chat_template":true,"model_type":"llama"}"#;
    assert!(matches!(say(&mut machine, ready, now), Some(Output::Ready(_))));
    machine
}

fn row(row: u32) -> v1::Row {
    v1::Row { row, attempt: 1, request: r#"{"custom_id":"a"}"#.into(), ..Default::default() }
}

fn answer(row: u32) -> String {
    format!(
        r#"{{"ev":"result","row":{row},"attempt":1,"status":200,"prompt_tokens":1,"completion_tokens":1,"resumed_tokens":0,"body":{{}}}}"#
    )
}

fn written(actions: &[Action]) -> Vec<String> {
    let text = |action: &Action| match action {
        Action::Write(line) => String::from_utf8(line.clone()).unwrap().trim_end().to_owned(),
        other => format!("{other:?}"),
    };
    actions.iter().map(text).collect()
}

#[test]
fn the_phases_follow_what_the_worker_says() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    assert_eq!(machine.phase(), WorkerPhase::Idle);
    let step = r#"{"ev":"step","n":5,"phase":"PHASE","active":2,"waiting":1,"prompt_tokens":10,"generated_tokens":4,"peak_memory_bytes":9}"#;
    say(&mut machine, &step.replace("PHASE", "prefill"), now);
    assert_eq!(machine.phase(), WorkerPhase::Prefill);
    say(&mut machine, &step.replace("PHASE", "decode"), now);
    assert_eq!(machine.phase(), WorkerPhase::Decode);
    let (progress, _) = machine.report(now + Duration::from_millis(40), 100);
    assert_eq!((progress.step, progress.step_age_ms, progress.generated_tokens), (5, 40, 4));
    say(&mut machine, r#"{"ev":"idle","n":5}"#, now);
    assert_eq!(machine.phase(), WorkerPhase::Idle);
}

#[test]
fn a_step_that_was_overtaken_changes_nothing() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    say(&mut machine, r#"{"ev":"idle","n":7}"#, now);
    let late = r#"{"ev":"step","n":6,"phase":"decode","active":2,"waiting":1,"prompt_tokens":10,"generated_tokens":4,"peak_memory_bytes":9}"#;
    say(&mut machine, late, now);
    assert_eq!(machine.phase(), WorkerPhase::Idle);
    assert_eq!(machine.report(now, 100).0.step, 7);
}

#[test]
fn reports_come_when_something_changed_and_once_a_second_at_least() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    assert!(machine.report_is_due(now));
    machine.report(now, 100);
    assert!(!machine.report_is_due(now + Duration::from_millis(900)));
    assert!(machine.report_is_due(now + Duration::from_secs(1)));
    say(&mut machine, r#"{"ev":"idle","n":1}"#, now);
    assert!(machine.report_is_due(now));
}

#[test]
fn rows_go_to_the_worker_once_and_bad_ones_never() {
    let mut machine = ready_machine(Instant::now());
    let broken = v1::Row { request: "{\"a\":\n1}".into(), ..row(2) };
    let (actions, refused) = machine.assign(&[row(1), broken, row(1)]);
    assert_eq!(
        written(&actions),
        [
            r#"{"op":"rows","rows":[{"row":1,"attempt":1,"request":{"custom_id":"a"},"tokens":[],"logprobs":null}]}"#
        ]
    );
    assert_eq!((refused.len(), refused[0].row), (1, 2));
    let newer = v1::Row { attempt: 2, ..row(1) };
    let lines = written(&machine.assign(&[newer]).0);
    assert_eq!(lines[0], r#"{"op":"cancel","rows":[1]}"#);
    assert!(lines[1].contains(r#""attempt":2"#));
}

#[test]
fn an_answer_comes_out_once_and_only_of_held_rows() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    machine.assign(&[row(1), row(2)]);
    assert!(matches!(say(&mut machine, &answer(1), now), Some(Output::Answer(_))));
    assert!(say(&mut machine, &answer(1), now).is_none());
    assert_eq!(written(&machine.cancel(&[2, 3])), [r#"{"op":"cancel","rows":[2]}"#]);
    assert!(say(&mut machine, &answer(2), now).is_none());
    assert_eq!(machine.snapshot().rows.len(), 1, "held until it is spooled");
    machine.spooled(1, 1);
    assert_eq!(machine.snapshot().rows.len(), 0);
}

#[test]
fn a_checkpoint_stop_goes_from_asking_to_sigterm_to_sigkill() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    assert_eq!(written(&machine.stop(StopMode::Checkpoint, GRACE, now)), [r#"{"op":"checkpoint"}"#]);
    assert_eq!(machine.phase(), WorkerPhase::Stopping);
    assert_eq!(machine.assign(&[row(1)]).0, [], "no new rows for one that is to end");
    assert_eq!(machine.deadline(), Some(now + GRACE));
    assert_eq!(machine.on_time(now), []);
    assert_eq!(machine.on_time(now + GRACE), [Action::Terminate]);
    assert_eq!(machine.on_time(now + GRACE), []);
    assert_eq!(machine.on_time(now + 2 * GRACE), [Action::Kill]);
    assert_eq!(machine.deadline(), None);
    let exited = machine.exited(None, Some(9), false, &Scan::default());
    assert_eq!((exited.class(), exited.killed_while_loaded), (ExitClass::Killed, true));
}

#[test]
fn finishing_takes_as_long_as_it_takes_and_can_be_cut_short() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    assert_eq!(written(&machine.stop(StopMode::FinishStarted, GRACE, now)), [r#"{"op":"finish"}"#]);
    assert_eq!(machine.deadline(), None);
    assert_eq!(written(&machine.stop(StopMode::Checkpoint, GRACE, now)), [r#"{"op":"checkpoint"}"#]);
    assert_eq!(machine.stop(StopMode::FinishStarted, GRACE, now), [], "a weaker request changes nothing");
    assert_eq!(machine.stop(StopMode::Kill, GRACE, now), [Action::Terminate]);
    assert_eq!(machine.stop(StopMode::Kill, Duration::ZERO, now), [], "but the grace may be shortened");
    assert_eq!(machine.on_time(now), [Action::Kill]);
    assert_eq!(machine.stop(StopMode::Kill, GRACE, now), []);
}

#[test]
fn a_worker_that_obeys_ends_orderly_and_one_that_breaks_the_protocol_does_not() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    machine.stop(StopMode::Kill, GRACE, now);
    assert_eq!(machine.exited(Some(0), None, false, &Scan::default()).class(), ExitClass::Orderly);

    let mut machine = ready_machine(now);
    assert_eq!(machine.fail("it wrote rubbish".into(), now), [Action::Terminate]);
    assert!(!machine.is_trusted());
    let exited = machine.exited(Some(0), None, false, &Scan::default());
    assert_eq!((exited.class(), exited.first_error.as_str()), (ExitClass::Crashed, "it wrote rubbish"));
}

#[test]
fn checkpoints_survive_being_handed_back() {
    let now = Instant::now();
    let mut machine = ready_machine(now);
    machine.assign(&[row(1)]);
    say(&mut machine, r#"{"ev":"started","rows":[1]}"#, now);
    assert!(machine.snapshot().rows[0].started);
    say(&mut machine, r#"{"ev":"checkpoint","rows":[{"row":1,"attempt":1,"offset":0,"tokens":[4,5]}]}"#, now);
    say(&mut machine, r#"{"ev":"returned","rows":[1]}"#, now);
    assert!(machine.report(now, 1).1, "the second token did not fit");
    let (progress, more) = machine.report(now, 1000);
    assert_eq!((progress.checkpoints[0].tokens.as_slice(), more), ([5].as_slice(), false));
    assert_eq!(machine.report(now, 1000).0.checkpoints, []);
}

#[test]
fn another_protocol_is_refused() {
    let mut machine = Machine::new(0, 1, Instant::now());
    let hello = r#"{"ev":"hello","protocol":2,"pid":3,"python":"3.11.7","mlx":"0","mlx_lm":"0"}"#;
    let event = protocol::parse(hello.as_bytes()).unwrap();
    let problem = machine.on_event(event, Instant::now()).unwrap_err();
    assert_eq!(problem, "the worker speaks protocol 2, and this agent 1");
    assert!(!machine.exited(None, Some(9), false, &Scan::default()).killed_while_loaded);
}

/// A rank of a gang but 0 takes a first SIGTERM for a notice (follower.py); the second is still before SIGKILL.
#[test]
fn a_follower_gets_a_second_sigterm_before_sigkill() {
    let now = Instant::now();
    let mut machine = Machine::new(1, 2, now);
    assert_eq!(machine.stop(StopMode::Checkpoint, GRACE, now).len(), 1);
    assert_eq!(machine.deadline(), Some(now + GRACE));
    let terminated = now + GRACE;
    assert_eq!(machine.on_time(terminated), [Action::Terminate]);
    assert_eq!(machine.deadline(), Some(terminated + GRACE / 2));
    assert_eq!(machine.on_time(terminated + GRACE / 2 - Duration::from_millis(1)), []);
    assert_eq!(machine.on_time(terminated + GRACE / 2), [Action::Terminate]);
    assert_eq!(machine.on_time(terminated + GRACE / 2), []);
    assert_eq!(machine.deadline(), Some(terminated + GRACE));
    assert_eq!(machine.on_time(terminated + GRACE), [Action::Kill]);

    let mut late = Machine::new(1, 2, now);
    late.stop(StopMode::Kill, GRACE, now);
    assert_eq!(late.on_time(now + GRACE), [Action::Kill], "whoever wakes up late does not ask again");
    let mut hurried = Machine::new(1, 2, now);
    let told = hurried.stop(StopMode::Kill, GRACE, now);
    assert_eq!(told, [Action::Write(b"{\"op\":\"abandon\"}\n".to_vec()), Action::Terminate]);
    assert_eq!(hurried.stop(StopMode::Kill, GRACE / 4, now), [], "once");
    assert_eq!(hurried.deadline(), Some(now + GRACE / 8));
}

#[test]
fn news_of_another_kind_disturb_nothing() {
    let now = Instant::now();
    let mut machine = Machine::new(1, 2, now);
    say(&mut machine, r#"{"ev":"hello","protocol":1,"pid":3,"python":"3","mlx":"0","mlx_lm":"0"}"#, now);
    assert!(say(&mut machine, r#"{"ev":"loading","bytes":7}"#, now).is_none());
    assert!(machine.is_trusted() && machine.phase() == WorkerPhase::Loading);
    let ready = r#"{"ev":"ready","load_ms":3,"peak_memory_bytes":1,"has_chat_template":true,"model_type":"llama","rendezvous_ms":40,"canary":{"tokens":[1]}}"#;
    let Some(Output::Ready(ready)) = say(&mut machine, ready, now) else { panic!() };
    assert_eq!((ready.rendezvous_ms, ready.canary.map(|canary| canary.tokens)), (40, Some(vec![1])));
}

proptest! {
    /// Whatever is asked and however time goes: SIGKILL comes at most once, and never before SIGTERM.
    #[test]
    fn sigkill_never_comes_first(asks in proptest::collection::vec((0..4_i32, 0..30_u64, 0..40_u64), 1..30)) {
        let start = Instant::now();
        let mut machine = ready_machine(start);
        let mut now = start;
        let (mut terms, mut kills) = (0, 0);
        for (mode, grace_s, wait_s) in asks {
            let mode = StopMode::try_from(mode).unwrap();
            let mut actions = machine.stop(mode, Duration::from_secs(grace_s), now);
            now += Duration::from_secs(wait_s);
            actions.extend(machine.on_time(now));
            for action in actions {
                match action {
                    Action::Terminate => terms += 1,
                    Action::Kill => { kills += 1; prop_assert_eq!(terms, 1); }
                    Action::Write(_) => prop_assert_eq!((terms, kills), (0, 0)),
                }
            }
        }
        prop_assert!(terms <= 1 && kills <= 1);
    }
}
