//! Restarts of a GPU: by the driver's counter, by a worker that ends for it, or by both, which is one fault.

use super::{gangs::Sessions, kit::*, ladder::start_all};
use crate::{
    model::{Fault, Incident, NodeId, WorkerKey},
    recovery::*,
};

/// One node at work, whose counter stands at 2.
fn at_work() -> (Kit, Sessions, WorkerKey) {
    let mut kit = Kit::new();
    kit.found.insert("a".to_owned(), small_model());
    kit.machines.insert("a".to_owned(), machine("10.0.0.1", 60));
    let sessions = vec![("a", kit.connect("a").0)];
    assert_eq!(events(&counter(&mut kit, 2)), [""; 0], "how often it was before is no news");
    let effects = kit.tell(Event::JobAccepted(record(1, 100)));
    let workers = start_all(&mut kit, &effects);
    (kit, sessions, workers[0].1)
}

fn counter(kit: &mut Kit, restarts: u64) -> Vec<Effect> {
    let mut facts = kit.machines["a"].clone();
    facts.boot.gpu_restarts = Some(restarts);
    kit.observe("a", facts)
}

fn faults(kit: &Kit) -> Vec<Incident> {
    kit.machine.incidents().filter(|incident| incident.fault == Fault::GpuFault).cloned().collect()
}

/// Rows together and tokens a step of the worker that starts next.
fn next_settings(effects: &[Effect]) -> (u32, u32) {
    let of = |effect: &Effect| match effect {
        Effect::Send { command: Command::StartWorker { settings, .. }, .. } => {
            Some((settings.max_batch_rows, settings.prefill_step_tokens))
        }
        _ => None,
    };
    effects.iter().find_map(of).expect("a worker starts")
}

const ROSE: &str = "the driver's counter of GPU restarts rose from 2 to 3";

#[test]
fn a_restart_that_ends_no_worker_is_told_and_makes_the_next_one_gentler() {
    let (mut kit, sessions, worker) = at_work();
    let effects = counter(&mut kit, 3);
    assert_eq!(events(&effects), ["gpu-restarted"]);
    assert_eq!(faults(&kit).len(), 0, "a worker may yet end for it");
    let _ = kit.wait(16_000, &sessions);
    let [fault] = faults(&kit).try_into().unwrap();
    assert_eq!(fault.summary, "the GPU of a was restarted, and no worker ended for it");
    assert_eq!(fault.times, 1, "once");
    assert_eq!(
        (fault.evidence.as_slice(), fault.closed_unix_ms.is_some()),
        ([ROSE.to_owned()].as_slice(), true)
    );
    let mut effects = kit.exit("a", worker, ExitClass::Crashed);
    effects.extend(kit.wait(1_000, &sessions));
    assert_eq!(next_settings(&effects), (4, 1_024));
}

#[test]
fn the_counter_and_the_end_of_a_worker_are_one_fault_in_either_order() {
    for counter_first in [true, false] {
        let (mut kit, sessions, worker) = at_work();
        let mut effects = Vec::new();
        if counter_first {
            effects.extend(counter(&mut kit, 3));
            effects.extend(kit.wait(3_000, &sessions));
        }
        effects.extend(kit.exit("a", worker, ExitClass::GpuFault));
        if !counter_first {
            effects.extend(kit.wait(100, &sessions));
            effects.extend(counter(&mut kit, 3));
        }
        effects.extend(kit.wait(20_000, &sessions));
        assert_eq!(next_settings(&effects), (4, 1_024), "halved once");
        let [fault] = faults(&kit).try_into().unwrap();
        assert_eq!(fault.times, 1);
        assert!(fault.evidence.contains(&ROSE.to_owned()), "{fault:#?}");
    }
}

#[test]
fn restarts_alone_lead_to_quarantine() {
    let (mut kit, sessions, _) = at_work();
    for (after_s, restarts) in [(0, 3), (10, 4), (20, 5)] {
        let _ = kit.wait(after_s * 1_000, &sessions);
        assert!(kit.machine.node(&NodeId::from("a")).unwrap().quarantine.is_none());
        let _ = counter(&mut kit, restarts);
    }
    let quarantine =
        kit.machine.node(&NodeId::from("a")).unwrap().quarantine.clone().expect("it is left alone");
    assert!(quarantine.reason.ends_with("rose from 4 to 5"), "{quarantine:?}");
}

#[test]
fn many_at_once_are_enough() {
    let (mut kit, _, _) = at_work();
    let _ = counter(&mut kit, 1_000_000);
    assert!(kit.machine.node(&NodeId::from("a")).unwrap().quarantine.is_some());
}

/// The counter starts anew with the machine, and what is not known for a moment is not zero.
#[test]
fn a_new_boot_and_a_gap_are_no_restarts() {
    let (mut kit, _, _) = at_work();
    let facts = kit.machines["a"].clone();
    let _ = kit.observe("a", facts);
    assert_eq!(events(&counter(&mut kit, 2)), [""; 0]);
    let machine = kit.machines.get_mut("a").unwrap();
    machine.boot_id = "boot-2".to_owned();
    let (session, _) = kit.hello("a", "agent-2", Vec::new());
    let _ = kit.replayed("a", session);
    assert!(!events(&counter(&mut kit, 5)).contains(&"gpu-restarted"));
    assert!(events(&counter(&mut kit, 6)).contains(&"gpu-restarted"));
}
