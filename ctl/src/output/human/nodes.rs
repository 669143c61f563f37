//! `nodes`, and the sentences about a node that other screens use.

use crate::output::{
    screen::Screen,
    style::Style,
    table::{Cell, Column, Table},
    text::{Cut, capital, plural, sentence},
    units,
    views::{ConditionView, NodeView},
};

/// "last heard 12 min ago"
const WORK_COLUMNS: usize = 21;

/// `nodes`.
pub fn nodes(nodes: &[NodeView], screen: &Screen) -> String {
    if nodes.is_empty() {
        return super::text(&screen.sentence("", NO_NODES, Style::Plain));
    }
    let mut table = Table::new([
        Column::new("NODE").flexible(8, Cut::Tail),
        Column::new("STATE"),
        Column::new("WORK").flexible(WORK_COLUMNS, Cut::Tail).droppable(1),
        Column::new("TOK/S").right().droppable(3),
        Column::new("MEMORY").droppable(2),
        Column::new("RUNTIME").droppable(4),
        Column::new("SYSTEM").flexible(8, Cut::Tail).droppable(6),
        Column::new("CONNECTED").droppable(5),
    ]);
    for node in nodes {
        table.row([
            node.id.as_str().into(),
            Cell::styled(node.state, state_style(node.state)),
            work(node).into(),
            units::rate(node.tokens_per_s).into(),
            memory(node).into(),
            runtime(node),
            system(node).into(),
            match node.connected_at {
                Some(at) if node.state != "silent" => screen.ago(at.0).into(),
                _ => Cell::default(),
            },
        ]);
    }
    let mut lines = table.lines(0, screen);
    let remarks: Vec<String> = nodes.iter().flat_map(|node| remarks(node, screen)).collect();
    if !remarks.is_empty() {
        lines.push(String::new());
        lines.extend(remarks);
    }
    super::text(&lines)
}

pub(crate) const NO_NODES: &str =
    "No node has joined yet. Start an agent on each machine with: cluster-agent run --controller ADDRESS";

/// The nodes of `status`: the same words, fewer columns.
pub(crate) fn table(nodes: &[NodeView], indent: usize, screen: &Screen) -> Vec<String> {
    let mut table = Table::new([
        Column::new("NODE").flexible(8, Cut::Tail),
        Column::new("STATE"),
        Column::new("WORK").flexible(WORK_COLUMNS, Cut::Tail).droppable(1),
        Column::new("TOK/S").right().droppable(3),
        Column::new("MEMORY").droppable(2),
        Column::new("RUNTIME").droppable(4),
    ]);
    for node in nodes {
        table.row([
            node.id.as_str().into(),
            Cell::styled(node.state, state_style(node.state)),
            work(node).into(),
            units::rate(node.tokens_per_s).into(),
            memory(node).into(),
            runtime(node),
        ]);
    }
    table.lines(indent, screen)
}

pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "ready" => Style::Good,
        "draining" => Style::Warn,
        _ => Style::Bad,
    }
}

/// What it does now: "decode j7, 8 rows", "idle", "last heard 12 min ago".
pub(crate) fn work(node: &NodeView) -> String {
    if node.state == "silent" {
        return format!("last heard {}", units::ago(node.silent_ms));
    }
    match node.workers.as_slice() {
        [] => "nothing".to_owned(),
        [worker] => {
            let job = worker.job.as_deref().unwrap_or("?");
            match worker.held_rows {
                0 => format!("{job} {}", worker.phase),
                _ => format!("{job} {}, {}", worker.phase, worker.rows()),
            }
        }
        workers => {
            let rows: u32 = workers.iter().map(|w| w.held_rows).sum();
            format!("{} workers, {rows} rows", workers.len())
        }
    }
}

fn memory(node: &NodeView) -> String {
    let Some(machine) = &node.machine else { return String::new() };
    match (machine.memory_available_bytes, machine.memory_total_bytes) {
        (Some(available), Some(total)) => {
            format!("{} of {} free", units::bytes(available), units::bytes(total))
        }
        (None, Some(total)) => units::bytes(total),
        _ => String::new(),
    }
}

fn runtime(node: &NodeView) -> Cell {
    match &node.runtime {
        Some(runtime) if runtime.ready => {
            runtime.mlx_version.as_ref().map_or("ready".into(), |version| format!("MLX {version}").into())
        }
        Some(_) => Cell::styled("not ready", Style::Bad),
        None => Cell::default(),
    }
}

fn system(node: &NodeView) -> String {
    let Some(machine) = &node.machine else { return String::new() };
    [&machine.hardware_model, &machine.os, &machine.os_build, &machine.arch]
        .into_iter()
        .filter_map(|part| part.as_deref())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a person should know about a node, a sentence each: why it is not ready, what keeps it from gangs or is to be done about it
/// at leisure, what its boot has been through, probes that failed. Nothing for a node that is well, or that is on its way there by
/// itself.
pub(crate) fn remarks(node: &NodeView, screen: &Screen) -> Vec<String> {
    let mut said: Vec<&str> = Vec::new();
    if node.state != "ready" {
        said.extend(node.detail.as_deref());
        if let Some(runtime) = node.runtime.as_ref().filter(|runtime| !runtime.ready) {
            said.extend(runtime.problem.as_deref());
        }
    }
    // A silent node's last words are old; what it said of itself then would mislead.
    if node.state != "silent" {
        let bad = node.conditions.iter().filter(|condition| is_bad(condition));
        said.extend(bad.filter_map(|condition| condition.message.as_deref()));
    }
    let boot = boot(node);
    said.extend(boot.as_deref());
    if let Some(machine) = &node.machine {
        said.extend(machine.problems.iter().map(String::as_str));
    }
    let mut lines = Vec::new();
    for (i, text) in said.iter().enumerate() {
        if !said[..i].contains(text) {
            lines.extend(screen.sentence(
                "• ",
                &format!("{}: {}", node.id, capital(&sentence(text))),
                Style::Warn,
            ));
        }
    }
    lines
}

/// What this boot has been through, where that is anything.
pub(crate) fn boot(node: &NodeView) -> Option<String> {
    let machine = node.machine.as_ref()?;
    let starts = machine.rdma_starts_used.zip(machine.rdma_starts_most).filter(|(used, _)| *used > 0);
    let starts = starts.map(|(used, most)| format!("{used} of {most} RDMA starts of this boot are used"));
    let kills = (machine.kills_while_loaded > 0).then(|| {
        let workers = plural(machine.kills_while_loaded.into(), "worker was", "workers were");
        let memory = match machine.stranded_bytes {
            None => String::new(),
            Some(bytes) => format!("; {} more is wired than at the least", units::bytes(bytes)),
        };
        format!("{workers} killed with a model in memory in this boot{memory}")
    });
    let parts: Vec<String> = [starts, kills].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Whether a condition is one to tell a person about: "Ready" and "…Ready" should be true, and so should the steps by which a Mac
/// comes back into gangs; "NeedsReboot" and the like should be false. "Rejoined" repeats the step that is open. Links that are being
/// tried, as after each restart, are no reason to warn anybody; `explain` tells of them.
fn is_bad(condition: &ConditionView) -> bool {
    let ConditionView { kind, status, reason, .. } = condition;
    if kind.starts_with("Needs") {
        return *status == "true";
    }
    let should_hold =
        kind.ends_with("Ready") || matches!(kind.as_str(), "VersionsAlike" | "LinksPrepared" | "LinksProven");
    should_hold && *status == "false" && reason.as_deref() != Some("BeingTried")
}

#[cfg(test)]
mod tests {
    use nightshift_proto::v1;

    use super::*;

    /// What is told of a node with these conditions.
    fn told(state: v1::NodeState, conditions: &[(&str, v1::ConditionStatus, &str, &str)]) -> Vec<String> {
        let condition =
            |(kind, status, reason, message): &(&str, v1::ConditionStatus, &str, &str)| v1::Condition {
                r#type: (*kind).to_owned(),
                status: (*status).into(),
                reason: (*reason).to_owned(),
                message: (*message).to_owned(),
                ..v1::Condition::default()
            };
        let node = v1::Node {
            node_id: "a".to_owned(),
            state: state.into(),
            conditions: conditions.iter().map(condition).collect(),
            ..v1::Node::default()
        };
        remarks(&node.into(), &Screen::plain(None))
    }

    #[test]
    fn links_that_did_not_pass_are_told_once_and_those_being_tried_not_at_all() {
        use v1::{ConditionStatus::False, NodeState};
        let failed = [
            ("LinksProven", False, "Failed", "the link a–b did not pass its test"),
            ("Rejoined", False, "Failed", "the link a–b did not pass its test"),
        ];
        for state in [NodeState::Ready, NodeState::NotReady, NodeState::Draining] {
            assert_eq!(told(state, &failed), ["• a: The link a–b did not pass its test."], "{state:?}");
        }
        let being_tried = [
            ("LinksProven", False, "BeingTried", "the link a–b is being tried"),
            ("Rejoined", False, "BeingTried", "the link a–b is being tried"),
        ];
        for state in [NodeState::Ready, NodeState::NotReady, NodeState::Draining] {
            assert_eq!(told(state, &being_tried), [""; 0], "{state:?}");
        }
        let not_tried = [("LinksProven", False, "NotTried", "the link a–b was not tried: it has no runtime")];
        assert_eq!(told(NodeState::Ready, &not_tried).len(), 1);
    }

    #[test]
    fn each_condition_that_should_be_otherwise_is_told_unless_it_is_old() {
        use v1::{
            ConditionStatus::{False, True, Unknown},
            NodeState,
        };
        let conditions = [
            ("RuntimeReady", False, "Missing", "there is no runtime"),
            ("VersionsAlike", False, "Differ", "its MLX is another"),
            ("LinksPrepared", False, "Lacks", "en3 has no address"),
            ("NeedsReboot", True, "StrandedMemory", "60 GB are wired"),
            ("NeedsRepair", False, "None", "this is well"),
            ("LinksProven", Unknown, "NotTried", "it cannot be tried"),
            ("MemoryReady", True, "Free", "this is well, too"),
        ];
        let said = [
            "• a: There is no runtime.",
            "• a: Its MLX is another.",
            "• a: en3 has no address.",
            "• a: 60 GB are wired.",
        ];
        assert_eq!(told(NodeState::Ready, &conditions), said);
        assert_eq!(told(NodeState::NotReady, &conditions), said);
        assert_eq!(told(NodeState::Silent, &conditions), [""; 0]);
    }
}
