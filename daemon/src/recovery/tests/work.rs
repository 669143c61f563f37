//! Who did how much of a job, and when that is written.

use super::kit::*;
use crate::{
    model::{JobRecord, NodeWork, WayWork, WorkerKey},
    recovery::*,
};

fn busy(kit: &mut Kit, node: &str, worker: WorkerKey, active_rows: u32) {
    let news = ProgressNews {
        worker,
        phase: if active_rows > 0 { WorkerPhase::Decode } else { WorkerPhase::Idle },
        step: 1 + kit.now.mono_ms,
        step_age_ms: 0,
        active_rows,
        prompt_tokens: 1,
        generated_tokens: 1,
        peak_memory_bytes: 0,
        checkpoints: vec![],
    };
    let _ = kit.tell(Event::Progress { node: node.into(), news });
}

fn records(effects: &[Effect]) -> Vec<&JobRecord> {
    let records = effects.iter().filter_map(|effect| match effect {
        Effect::RecordJob(record) => Some(record.as_ref()),
        _ => None,
    });
    records.collect()
}

#[test]
fn rows_tokens_and_time_at_work_are_counted_by_node_and_written_once_a_minute() {
    let mut kit = Kit::new();
    let sessions = [("a", kit.connect("a").0), ("b", kit.connect("b").0)];
    let workers = started(&kit.tell(Event::JobAccepted(record(1, 50))));
    let mut grants = Vec::new();
    for (node, worker) in &workers {
        grants.push(granted(&kit.ready(node, *worker), node));
    }
    let (a, b) = (workers[0].1, workers[1].1);
    let _ = kit.wait(5_000, &sessions);
    busy(&mut kit, "a", a, 3);
    let _ = kit.wait(2_000, &sessions);
    for grant in &grants[0][..2] {
        let _ = kit.result("a", sessions[0].1, a, *grant);
        let effects = kit.committed("a", a, *grant, kit.spool_seq);
        assert!(records(&effects).is_empty(), "no record is written for a row");
    }
    let _ = kit.result("b", sessions[1].1, b, grants[1][0]);
    let _ = kit.committed("b", b, grants[1][0], kit.spool_seq);
    busy(&mut kit, "a", a, 0);

    let effects = kit.wait(57_900, &sessions);
    assert!(records(&effects).is_empty(), "a minute after the first change");
    let effects = kit.wait(200, &sessions);
    let written = records(&effects);
    assert_eq!(written.len(), 1);
    let of = |node: &str| written[0].work.nodes[&node.into()];
    let expected = NodeWork { rows: 2, prompt_tokens: 2, completion_tokens: 4, busy_ms: 2_000 };
    assert_eq!(of("a"), expected);
    assert_eq!(of("b"), NodeWork { rows: 1, prompt_tokens: 1, completion_tokens: 2, busy_ms: 0 });
    assert_eq!(written[0].work.ways, [WayWork { rung: crate::model::Rung::independent(false), rows: 3 }]);
    let effects = kit.wait(120_000, &sessions);
    assert!(records(&effects).is_empty(), "nothing has changed since");
}

#[test]
fn time_in_which_the_controller_did_not_run_is_nobody_s() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let (_, worker) = started(&kit.tell(Event::JobAccepted(record(1, 50))))[0].clone();
    let _ = kit.ready("a", worker);
    let _ = kit.wait(200, &[("a", session)]);
    busy(&mut kit, "a", worker, 3);
    kit.now.mono_ms += 3_600_000;
    let _ = kit.tell(Event::Tick);
    assert_eq!(kit.job(1).record.work.nodes[&"a".into()].busy_ms, 1_000);
}
