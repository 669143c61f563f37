//! What only a restart of a machine brings back.

use super::{gangs::cluster, kit::*};
use crate::{
    model::{Fault, Incident, JobId, NodeId, WorkerKey},
    recovery::*,
};

const GB: u64 = 1_000_000_000;

fn observe(kit: &mut Kit, node: &str, boot: BootFacts) -> Vec<Effect> {
    let facts = kit.machines.get(node).cloned().unwrap_or_default();
    kit.observe(node, NodeFacts { boot, ..facts })
}

fn killed(kit: &mut Kit, node: &str, worker: WorkerKey) -> Vec<Effect> {
    let exit = WorkerExit {
        worker,
        class: ExitClass::Killed,
        status: "was ended by SIGKILL".to_owned(),
        first_error: String::new(),
        log_tail: Vec::new(),
        started_rows: Vec::new(),
        killed_while_loaded: true,
        quiet_ms: None,
    };
    kit.tell(Event::WorkerExited { node: NodeId::from(node), exit })
}

fn needs(kit: &Kit) -> Vec<&Incident> {
    kit.machine.incidents().filter(|incident| incident.fault == Fault::NeedsReboot).collect()
}

#[test]
fn after_a_kill_nothing_is_loaded_before_the_memory_has_been_looked_at_nor_when_it_is_lost() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let alive = [("a", session)];
    let effects = kit.tell(Event::JobAccepted(record(1, 50)));
    let (_, worker) = started(&effects)[0].clone();
    let _ = kit.ready("a", worker);
    let _ = killed(&mut kit, "a", worker);
    assert_eq!(started(&kit.wait(20_000, &alive)), [], "nobody has looked");

    // An observation that was under way when it was killed tells nothing.
    let _ = observe(&mut kit, "a", BootFacts::default());
    assert_eq!(started(&kit.wait(5_000, &alive)), []);
    let lost = BootFacts { kills_while_loaded: 1, stranded_bytes: Some(60 * GB), ..BootFacts::default() };
    let _ = observe(&mut kit, "a", lost);
    assert_eq!(started(&kit.wait(600_000, &alive)), [], "60 GB are lost");
    let node = kit.machine.node(&"a".into()).unwrap();
    assert_eq!(node.needs_reboot().unwrap().0, "StrandedMemory");
    assert!(node.unusable(kit.now).unwrap().contains("60.0 GB"), "{:?}", node.unusable(kit.now));
    assert_eq!(needs(&kit).len(), 1);

    // The kernel was slow: it is back.
    let back = BootFacts { stranded_bytes: Some(GB), ..lost };
    let mut effects = observe(&mut kit, "a", back);
    effects.extend(kit.wait(2_000, &alive));
    assert_eq!(started(&effects).len(), 1);
    assert!(needs(&kit)[0].closed_unix_ms.is_some());
}

/// The node was away when it happened, and told of the count before it told of the end.
#[test]
fn a_kill_that_is_heard_after_its_count_keeps_nothing_waiting() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let effects = kit.tell(Event::JobAccepted(record(1, 50)));
    let (_, worker) = started(&effects)[0].clone();
    let _ = kit.ready("a", worker);
    let counted = BootFacts { kills_while_loaded: 1, stranded_bytes: Some(0), ..BootFacts::default() };
    let _ = observe(&mut kit, "a", counted);
    let _ = killed(&mut kit, "a", worker);
    assert_eq!(started(&kit.wait(2_000, &[("a", session)])), []);
    let mut effects = observe(&mut kit, "a", counted);
    effects.extend(kit.wait(1_000, &[("a", session)]));
    assert_eq!(started(&effects).len(), 1);
}

#[test]
fn what_others_wire_is_no_debt_of_ours() {
    let mut kit = Kit::new();
    let _ = kit.connect("a");
    let boot = BootFacts { stranded_bytes: Some(60 * GB), ..BootFacts::default() };
    let _ = observe(&mut kit, "a", boot);
    let effects = kit.tell(Event::JobAccepted(record(1, 50)));
    assert_eq!(started(&effects).len(), 1);
    assert_eq!(needs(&kit).len(), 0);
}

#[test]
fn a_reboot_settles_everything() {
    let mut kit = Kit::new();
    let _ = kit.connect("a");
    let lost = BootFacts { kills_while_loaded: 1, stranded_bytes: Some(60 * GB), ..BootFacts::default() };
    let _ = observe(&mut kit, "a", lost);
    assert!(kit.machine.node(&"a".into()).unwrap().needs_reboot().is_some());
    let facts = NodeFacts {
        boot_id: "boot-2".to_owned(),
        agent_instance_id: "agent-2".to_owned(),
        ..NodeFacts::default()
    };
    let session = SessionId(9);
    let _ = kit.tell(Event::Hello { node: "a".into(), session, facts, workers: vec![] });
    assert!(kit.machine.node(&"a".into()).unwrap().needs_reboot().is_none());
    assert_eq!(needs(&kit)[0].outcome, "the machine was restarted");
}

#[test]
fn a_node_without_rdma_starts_is_planned_over_tcp_and_takes_work() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let used = BootFacts { rdma_starts: 5, most_rdma_starts: 5, ..BootFacts::default() };
    let effects = observe(&mut kit, "a", used);
    assert!(events(&effects).contains(&"needs-reboot"));
    let node = kit.machine.node(&"a".into()).unwrap();
    assert_eq!((node.needs_reboot().unwrap().0, node.unusable(kit.now)), ("RdmaStartsUsedUp", None));
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(started(&effects).len(), 2);
    assert_eq!(kit.machine.job(JobId(1)).unwrap().rung().unwrap().backend.unwrap().word(), "ring");
}

/// What only a restart brings back on one machine is over when that machine was restarted, and with nothing else.
#[test]
fn a_restart_ends_the_need_of_that_machine_and_no_other_incident() {
    let mut kit = Kit::new();
    let (a, _) = kit.connect("a");
    kit.connect("b");
    // A trouble of a's of another kind: nobody goes on with the job.
    let (node, worker) = started(&kit.tell(Event::JobAccepted(record(1, 50))))[0].clone();
    kit.exit(&node, worker, ExitClass::Signalled);
    let limit = Policy::default().stranded_bytes;
    let lost =
        |bytes| BootFacts { kills_while_loaded: 1, stranded_bytes: Some(bytes), ..BootFacts::default() };
    let _ = observe(&mut kit, "a", lost(limit - 1));
    assert_eq!(needs(&kit).len(), 0, "as much as that comes and goes");
    for node in ["a", "b"] {
        let _ = observe(&mut kit, node, lost(limit));
    }
    kit.wait(6_000, &[("a", a)]);
    let open = |kit: &Kit| {
        let open = kit.machine.incidents().filter(|incident| incident.closed_unix_ms.is_none());
        let mut open: Vec<_> =
            open.map(|incident| (incident.fault, incident.node.clone().unwrap().to_string())).collect();
        open.sort_by_key(|(fault, node)| (fault.word(), node.clone()));
        open
    };
    let named = |fault, node: &str| (fault, node.to_owned());
    let (on_a, on_b) = (named(Fault::NeedsReboot, "a"), named(Fault::NeedsReboot, "b"));
    let others = [named(Fault::NodeSilent, "b"), named(Fault::WorkerExited, "a")];
    let open_beside = |needs: &[&(Fault, String)]| {
        [needs.iter().map(|need| (*need).clone()).collect(), others.to_vec()].concat()
    };
    assert_eq!(open(&kit), open_beside(&[&on_a, &on_b]));
    let _ = observe(&mut kit, "a", lost(0));
    assert_eq!(open(&kit), open_beside(&[&on_b]), "the kernel was slow: it came back by itself");
    let _ = observe(&mut kit, "a", lost(limit));
    assert_eq!(open(&kit), open_beside(&[&on_a, &on_b]));

    let restarted =
        NodeFacts { boot_id: "boot-2".to_owned(), ..kit.machines.get("a").cloned().unwrap_or_default() };
    let hello = Event::Hello { node: "a".into(), session: SessionId(99), facts: restarted, workers: vec![] };
    kit.tell(hello);
    assert_eq!(open(&kit), open_beside(&[&on_b]));
}
