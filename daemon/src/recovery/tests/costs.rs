//! What incidents say of their costs.

use super::kit::*;
use crate::{
    model::{Checkpoint, Fault, Incident, NodeId, WorkerKey},
    recovery::*,
};

fn progress(kit: &mut Kit, node: &str, worker: WorkerKey, generated: u64, kept: &[(RowGrant, u32, u32)]) {
    let checkpoints = kept.iter().map(|(grant, offset, tokens)| CheckpointNews {
        row: grant.row,
        attempt: grant.attempt,
        offset: *offset,
        checkpoint: Checkpoint { tokens: (0..*tokens).collect(), ..Checkpoint::default() },
    });
    let news = ProgressNews {
        worker,
        phase: WorkerPhase::Decode,
        step: generated + 1,
        step_age_ms: 0,
        active_rows: 2,
        prompt_tokens: 10,
        generated_tokens: generated,
        peak_memory_bytes: 0,
        checkpoints: checkpoints.collect(),
    };
    let _ = kit.tell(Event::Progress { node: NodeId::from(node), news });
}

fn newest(kit: &Kit, fault: Fault) -> Incident {
    kit.machine.incidents().find(|incident| incident.fault == fault).cloned().expect("an incident")
}

#[test]
fn tokens_in_no_checkpoint_are_lost_and_the_first_token_of_the_next_launch_is_timed() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let effects = kit.tell(Event::JobAccepted(record(1, 50)));
    let (_, worker) = started(&effects)[0].clone();
    let grants = granted(&kit.ready("a", worker), "a");
    progress(&mut kit, "a", worker, 30, &[(grants[0], 0, 12), (grants[1], 0, 10)]);
    // One row is done with 14 tokens, two of which were in no checkpoint; another has four more in its checkpoint.
    kit.spool_seq += 1;
    let head = ResultHead {
        spool_seq: kit.spool_seq,
        worker,
        row: grants[0].row,
        attempt: grants[0].attempt,
        status_code: 200,
        prompt_tokens: 1,
        completion_tokens: 14,
    };
    let _ = kit.tell(Event::Results { node: "a".into(), session, heads: vec![head] });
    let _ = kit.committed("a", worker, grants[0], kit.spool_seq);
    progress(&mut kit, "a", worker, 35, &[(grants[1], 10, 4)]);
    let alive = [("a", session)];
    let _ = kit.wait(300, &alive);

    let _ = kit.exit("a", worker, ExitClass::Signalled);
    let incident = newest(&kit, Fault::WorkerExited);
    assert_eq!((incident.tokens_lost, incident.tokens_saved), (35 - 14 - 14, 14));
    assert_eq!(incident.noticed_after_ms, Some(300), "since its last step");
    assert_eq!((incident.first_token_after_ms, incident.went_on_as.as_str()), (None, ""));

    let effects = kit.wait(600, &alive);
    let (_, next) = started(&effects)[0].clone();
    kit.load_ms = 400;
    let _ = kit.ready("a", next);
    let _ = kit.wait(400, &alive);
    progress(&mut kit, "a", next, 0, &[]);
    assert_eq!(newest(&kit, Fault::WorkerExited).first_token_after_ms, None, "it reads prompts yet");
    progress(&mut kit, "a", next, 1, &[]);
    let incident = newest(&kit, Fault::WorkerExited);
    assert_eq!((incident.first_token_after_ms, incident.start_ms), (Some(1_000), Some(400)));
    assert_eq!(incident.went_on_as, "independent workers");
}

#[test]
fn one_that_had_nothing_to_do_goes_on_with_the_rows() {
    let (mut kit, [(session, worker, _), (other, on_b, _)]) = two_at_work(50);
    progress(&mut kit, "a", worker, 5, &[]);
    let _ = kit.exit("a", worker, ExitClass::Crashed);
    assert_eq!(newest(&kit, Fault::WorkerExited).went_on_as, "");
    let _ = kit.wait(100, &[("a", session), ("b", other)]);
    progress(&mut kit, "b", on_b, 1, &[]);
    assert_eq!(newest(&kit, Fault::WorkerExited).went_on_as, "the other workers");
}

#[test]
fn where_others_went_on_nothing_is_timed() {
    let (mut kit, [(session, worker, _), (_, on_b, _)]) = two_at_work(50);
    progress(&mut kit, "a", worker, 5, &[]);
    progress(&mut kit, "b", on_b, 5, &[]);
    let _ = kit.wait(5_100, &[("a", session)]);
    let incident = newest(&kit, Fault::NodeSilent);
    assert_eq!(incident.went_on_as, "the other workers");
    assert_eq!((incident.tokens_lost, incident.noticed_after_ms), (5, Some(4_800)));
}

#[test]
fn what_an_agent_s_end_cost_is_known_when_its_spool_has_come() {
    let mut kit = Kit::new();
    let _ = kit.connect("a");
    let effects = kit.tell(Event::JobAccepted(record(1, 50)));
    let (_, worker) = started(&effects)[0].clone();
    let grants = granted(&kit.ready("a", worker), "a");
    progress(&mut kit, "a", worker, 40, &[(grants[0], 0, 12), (grants[1], 0, 10)]);
    let (session, _) = kit.hello("a", "agent-2", Vec::new());
    // In its spool: a row of 20 tokens.
    kit.spool_seq += 1;
    let head = ResultHead {
        spool_seq: kit.spool_seq,
        worker,
        row: grants[0].row,
        attempt: grants[0].attempt,
        status_code: 200,
        prompt_tokens: 1,
        completion_tokens: 20,
    };
    let _ = kit.tell(Event::Results { node: "a".into(), session, heads: vec![head] });
    let _ = kit.replayed("a", session);
    let incident = newest(&kit, Fault::AgentRestarted);
    assert_eq!((incident.tokens_lost, incident.tokens_saved), (40 - 20 - 10, 10));
    assert!(incident.rows_requeued > 0);
    assert!(incident.evidence.is_empty());

    let exit = WorkerExit {
        worker,
        class: ExitClass::Crashed,
        status: "exited with status 1".to_owned(),
        first_error: "KeyError: 'x'".to_owned(),
        log_tail: Vec::new(),
        started_rows: Vec::new(),
        killed_while_loaded: false,
        quiet_ms: None,
    };
    let _ = kit.tell(Event::WorkerExited { node: "a".into(), exit });
    let incident = newest(&kit, Fault::AgentRestarted);
    assert_eq!(incident.evidence, ["KeyError: 'x'"], "what the agent kept of its end");
    assert!(incident.summary.ends_with("; it exited with status 1: KeyError: 'x'"), "{}", incident.summary);
}
