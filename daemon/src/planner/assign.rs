//! The rules of choice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::question::GangPlan;
use crate::{
    fit::Workload,
    model::{JobId, Mode, NodeId, Plan, Reason},
};

/// A node as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// Its name.
    pub id: NodeId,
    /// Why it cannot take work now; `None` when it can.
    pub unusable: Option<String>,
    /// The job its worker belongs to. A worker that is already stopping does not count.
    pub running: Option<JobId>,
    /// Rows its worker has and has not answered.
    pub held_rows: u32,
    /// Its worker has been told to end: what makes it unusable will soon be over.
    pub ending: bool,
}

/// How a job may be spread over the nodes it does not run on yet: the choice of `choose.rs`, as far as it could be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// Nothing is known of the model's size: any node may try it whole.
    #[default]
    Unknown,
    /// Nothing is started yet, and why.
    Pending(Reason),
    /// Whole, on any of these.
    Independent {
        /// Which.
        nodes: BTreeSet<NodeId>,
        /// What each worker may carry.
        limits: Limits,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// Sharded, over all nodes of one of these at a time.
    Gangs {
        /// Which.
        gangs: Vec<GangPlan>,
        /// Layers of the model.
        layers: u32,
        /// What each gang may carry.
        limits: Limits,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// Nowhere, and why.
    Refused(Vec<Reason>),
}

/// The most that was found to fit. A job may ask for less.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Rows generated together.
    pub rows: u32,
    /// Rows whose prompts are read together.
    pub prefill_rows: u32,
    /// Tokens of a prompt read in one step.
    pub prefill_step_tokens: u32,
}

impl Limits {
    /// Where nothing is known.
    pub const NONE: Self = Self { rows: u32::MAX, prefill_rows: u32::MAX, prefill_step_tokens: u32::MAX };
}

impl From<Workload> for Limits {
    fn from(load: Workload) -> Self {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            rows: narrow(load.rows),
            prefill_rows: narrow(load.prefill_rows),
            prefill_step_tokens: narrow(load.prefill_step_tokens),
        }
    }
}

impl Layout {
    /// What a worker or a gang may carry.
    #[must_use]
    pub fn limits(&self) -> Limits {
        match self {
            Self::Independent { limits, .. } | Self::Gangs { limits, .. } => *limits,
            Self::Unknown | Self::Pending(_) | Self::Refused(_) => Limits::NONE,
        }
    }

    /// Whether one worker with the whole model may be started there.
    #[must_use]
    pub fn admits_whole(&self, node: &NodeId) -> bool {
        match self {
            Self::Unknown => true,
            Self::Independent { nodes, .. } => nodes.contains(node),
            Self::Pending(_) | Self::Gangs { .. } | Self::Refused(_) => false,
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Pending(reason) => vec![reason.clone()],
            Self::Independent { reasons, .. } | Self::Gangs { reasons, .. } | Self::Refused(reasons) => {
                reasons.clone()
            }
        }
    }
}

/// A job as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobView {
    /// Its number; older jobs have smaller ones.
    pub id: JobId,
    /// Higher goes first.
    pub priority: i32,
    /// Rows that nobody holds and nobody has answered.
    pub waiting_rows: u32,
    /// Rows one worker, or one gang, generates together: what it takes to keep it busy.
    pub batch_rows: u32,
    /// Nodes that must not get it now, and why.
    pub barred: BTreeMap<NodeId, String>,
    /// Nodes that are kept free for it while it changes from one way of running to another.
    pub kept: BTreeSet<NodeId>,
    /// Where else it may run.
    pub layout: Arc<Layout>,
    /// Why it runs as it does, where it changed to that.
    pub why_here: Option<Reason>,
    /// Of the gangs it has: their mode, how many, and why they are as they are.
    pub gangs: Option<RunningGangs>,
}

/// Gangs of a job that are at work, or starting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunningGangs {
    /// Pipeline or tensor.
    pub mode: Mode,
    /// How many.
    pub count: u32,
    /// From when they were planned.
    pub reasons: Vec<Reason>,
}

/// What the planner is told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// All nodes known, usable or not.
    pub nodes: Vec<NodeView>,
    /// Jobs that want to run; those over, paused or waiting for adoption are not among them.
    pub jobs: Vec<JobView>,
}

/// Which node works for which job, and a plan with its reasons for each job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assignment {
    /// Nodes not named here run nothing.
    pub nodes: BTreeMap<NodeId, JobId>,
    /// Gangs to be started; all their nodes are named above.
    pub gangs: Vec<(JobId, GangPlan)>,
    /// One for each job of the view.
    pub plans: BTreeMap<JobId, Plan>,
}

/// The nodes that are free for the jobs whose turn is still to come, and what each runs.
type Free<'a> = BTreeMap<&'a NodeId, Running<'a>>;

/// What a free node runs.
#[derive(Clone, Copy)]
struct Running<'a> {
    job: Option<&'a JobView>,
    held_rows: u32,
}

/// Chooses. Cost: nodes × jobs.
#[must_use]
pub fn assign(view: &View) -> Assignment {
    let mut by_turn: Vec<&JobView> = view.jobs.iter().collect();
    by_turn.sort_by_key(|job| (std::cmp::Reverse(job.priority), job.id));

    // What is left for further nodes once every node that has the job loaded has its batch: a job of one row must not
    // make all nodes load its model.
    let mut free = Free::new();
    for node in view.nodes.iter().filter(|node| node.unusable.is_none()) {
        let running = by_turn.iter().find(|job| {
            // A rank stays with its gang; a failure of its node ends that, not a plan.
            Some(job.id) == node.running && (job.gangs.is_some() || !job.barred.contains_key(&node.id))
        });
        free.insert(&node.id, Running { job: running.copied(), held_rows: node.held_rows });
    }
    let (mut nodes, mut gangs) = (BTreeMap::new(), Vec::new());
    for job in by_turn.iter().filter(|job| job.waiting_rows > 0) {
        for node in wanted_by(job, &free) {
            free.remove(&node);
            nodes.insert(node, job.id);
        }
        // Where it does not know yet what to start, nobody after it starts anything either.
        if matches!(job.layout.as_ref(), Layout::Pending(_)) {
            free.retain(|node, running| running.job.is_some() || !job.kept.contains(*node));
        }
        let ending: BTreeSet<&NodeId> =
            view.nodes.iter().filter(|node| node.ending).map(|node| &node.id).collect();
        for gang in gangs_for(job, &free, &ending) {
            let complete = gang.ranks.iter().all(|rank| free.contains_key(&rank.node));
            for rank in &gang.ranks {
                // Those of a gang that waits for a node to be free are kept for it, or the next job would take them.
                if free.remove(&rank.node).is_some() && complete {
                    nodes.insert(rank.node.clone(), job.id);
                }
            }
            if complete {
                gangs.push((job.id, gang));
            }
        }
    }
    // Nobody wants the rest: what is loaded stays loaded, for rows that may come back.
    for (node, running) in free {
        if let Some(job) = running.job {
            nodes.insert(node.clone(), job.id);
        }
    }
    let plans = by_turn.iter().map(|job| (job.id, plan_of(job, &by_turn, view, &nodes, &gangs))).collect();
    Assignment { nodes, gangs, plans }
}

/// What it costs to give a free node to a job; `None` when it must not be taken.
fn cost(job: &JobView, on_node: Running<'_>) -> Option<u8> {
    match on_node.job {
        Some(running) if running.id == job.id => Some(0),
        None => Some(1),
        // Rows it still has would go back, and a worker would be started for them again.
        Some(running) if running.waiting_rows == 0 && on_node.held_rows == 0 => Some(2),
        Some(running) if running.priority < job.priority => Some(3),
        Some(_) => None,
    }
}

/// Batches of rows the job has, each of which keeps a worker or a gang busy.
fn batches(job: &JobView) -> usize {
    job.waiting_rows.div_ceil(job.batch_rows.max(1)) as usize
}

/// The free nodes a job takes alone: all that have it loaded; then, while it has batches of rows for more, those that run
/// nothing, those whose worker has nothing left to do, and those whose job is less urgent.
fn wanted_by(job: &JobView, free: &Free<'_>) -> Vec<NodeId> {
    let mut candidates: Vec<(u8, &NodeId)> = free
        .iter()
        .filter_map(|(node, running)| {
            let cost = cost(job, *running)?;
            let may = cost == 0 || (!job.barred.contains_key(*node) && job.layout.admits_whole(node));
            may.then_some((cost, *node))
        })
        .collect();
    candidates.sort_unstable();
    let loaded = candidates.iter().filter(|(cost, _)| *cost == 0).count();
    candidates.into_iter().take(batches(job).max(loaded)).map(|(_, node)| node.clone()).collect()
}

/// Further gangs the job has rows for. Each needs all of its nodes; some may still be ending what they ran before.
fn gangs_for(job: &JobView, free: &Free<'_>, ending: &BTreeSet<&NodeId>) -> Vec<GangPlan> {
    let Layout::Gangs { gangs, .. } = job.layout.as_ref() else { return Vec::new() };
    let running = job.gangs.as_ref().map_or(0, |gangs| gangs.count as usize);
    gangs
        .iter()
        .filter(|gang| {
            gang.ranks.iter().all(|rank| {
                let may = free.get(&rank.node).is_some_and(|running| cost(job, *running).is_some());
                (may || ending.contains(&rank.node)) && !job.barred.contains_key(&rank.node)
            })
        })
        .take(batches(job).saturating_sub(running))
        .cloned()
        .collect()
}

fn plan_of(
    job: &JobView,
    by_turn: &[&JobView],
    view: &View,
    chosen: &BTreeMap<NodeId, JobId>,
    gangs: &[(JobId, GangPlan)],
) -> Plan {
    let nodes: Vec<NodeId> =
        chosen.iter().filter(|(_, chosen)| **chosen == job.id).map(|(node, _)| node.clone()).collect();
    let new_gang = gangs.iter().find(|(id, _)| *id == job.id).map(|(_, gang)| gang);
    let mode = match (&job.gangs, job.layout.as_ref()) {
        (Some(running), _) => running.mode,
        (None, Layout::Gangs { gangs, .. }) => gangs.first().map_or(Mode::Pipeline, |gang| gang.mode),
        (None, _) => Mode::Independent,
    };
    let backend = match job.layout.as_ref() {
        Layout::Gangs { gangs, .. } if mode != Mode::Independent => {
            new_gang.or(gangs.first()).map(|gang| gang.backend)
        }
        _ => None,
    };
    let mut reasons = Vec::new();
    match (nodes.len(), mode) {
        (0, _) => reasons.push(Reason::new("nodes", "no node works for it now")),
        (1, Mode::Independent) => {
            reasons.push(Reason::new("nodes", format!("one worker with the whole model, on {}", nodes[0])));
        }
        (count, Mode::Independent) => reasons.push(Reason::new(
            "nodes",
            format!("{count} independent workers, each with the whole model; they split the rows"),
        )),
        (count, Mode::Pipeline) => reasons.push(Reason::new(
            "nodes",
            format!("a pipeline over {count} nodes, each with some of the layers"),
        )),
        (count, Mode::Tensor) => reasons.push(Reason::new(
            "nodes",
            format!("tensor-parallel over {count} nodes, each with a part of every layer"),
        )),
    }
    reasons.extend(job.why_here.clone());
    match &job.gangs {
        Some(running) => reasons.extend(running.reasons.iter().cloned()),
        None => reasons.extend(job.layout.reasons().into_iter().map(|reason| {
            // What was looked at is where it does not run already.
            match job.layout.as_ref() {
                Layout::Refused(_) if !nodes.is_empty() => {
                    Reason { text: format!("on the other nodes {}", reason.text), ..reason }
                }
                _ => reason,
            }
        })),
    }
    let ahead: BTreeSet<JobId> =
        by_turn.iter().take_while(|other| other.id != job.id).map(|j| j.id).collect();
    let mut not_on = |node: &NodeId, why: &str| {
        reasons.push(Reason::of("not-on", node, format!("not on {node}: {why}")));
    };
    for node in view.nodes.iter().filter(|node| !nodes.contains(&node.id)) {
        if let Some(why) = &node.unusable {
            not_on(&node.id, why);
        } else if let Some(why) = job.barred.get(&node.id) {
            not_on(&node.id, why);
        } else if let Some(other) = chosen.get(&node.id) {
            let turn = if ahead.contains(other) { "whose turn is before" } else { "which has it loaded" };
            not_on(&node.id, &format!("it works for {other}, {turn}"));
        } else if mode == Mode::Independent && job.layout.admits_whole(&node.id) {
            not_on(&node.id, "no rows are left for it");
        }
    }
    Plan { mode, backend, nodes, reasons }
}

#[cfg(test)]
mod tests {
    use super::{super::question::RankPlan, *};
    use crate::{
        fit::{Need, Span, Stage},
        model::{Backend, LinkKind},
    };

    fn node(name: &str, running: Option<u64>) -> NodeView {
        NodeView { id: name.into(), unusable: None, running: running.map(JobId), held_rows: 0, ending: false }
    }

    fn job(id: u64, priority: i32, waiting_rows: u32) -> JobView {
        JobView {
            id: JobId(id),
            priority,
            waiting_rows,
            batch_rows: 4,
            barred: BTreeMap::new(),
            kept: BTreeSet::new(),
            why_here: None,
            layout: Arc::default(),
            gangs: None,
        }
    }

    fn chosen(nodes: Vec<NodeView>, jobs: Vec<JobView>) -> Vec<(String, u64)> {
        let view = View { nodes, jobs };
        let assignment = assign(&view);
        assert_eq!(super::super::check(&assignment, &view), vec![]);
        assignment.nodes.into_iter().map(|(node, job)| (node.to_string(), job.0)).collect()
    }

    fn pairs(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(node, job)| ((*node).to_owned(), *job)).collect()
    }

    #[test]
    fn every_free_node_gets_the_job_whose_turn_it_is() {
        assert_eq!(
            chosen(vec![node("a", None), node("b", None)], vec![job(1, 0, 9), job(2, 0, 9)]),
            pairs(&[("a", 1), ("b", 1)])
        );
        assert_eq!(chosen(vec![node("a", None)], vec![job(1, 0, 9), job(2, 5, 9)]), pairs(&[("a", 2)]));
    }

    #[test]
    fn a_node_keeps_its_job_against_an_older_one_but_not_against_a_more_urgent_one() {
        assert_eq!(chosen(vec![node("a", Some(2))], vec![job(1, 0, 9), job(2, 0, 9)]), pairs(&[("a", 2)]));
        assert_eq!(chosen(vec![node("a", Some(2))], vec![job(1, 1, 9), job(2, 0, 9)]), pairs(&[("a", 1)]));
    }

    #[test]
    fn a_node_with_nothing_left_to_get_serves_the_next_job_or_stays_loaded() {
        assert_eq!(chosen(vec![node("a", Some(1))], vec![job(1, 0, 0), job(2, 0, 9)]), pairs(&[("a", 2)]));
        let mut busy = node("a", Some(1));
        busy.held_rows = 3;
        let both = vec![busy, node("b", Some(1))];
        assert_eq!(
            chosen(both, vec![job(1, 0, 0), job(2, 0, 9)]),
            pairs(&[("a", 1), ("b", 2)]),
            "what a worker has, it finishes"
        );
        assert_eq!(chosen(vec![node("a", Some(1))], vec![job(1, 0, 0)]), pairs(&[("a", 1)]));
        assert_eq!(chosen(vec![node("a", None)], vec![job(1, 0, 0)]), pairs(&[]));
    }

    #[test]
    fn no_more_nodes_load_a_model_than_there_are_batches_for() {
        let free = || vec![node("a", None), node("b", None), node("c", None)];
        assert_eq!(chosen(free(), vec![job(1, 0, 1)]), pairs(&[("a", 1)]));
        assert_eq!(chosen(free(), vec![job(1, 0, 5)]), pairs(&[("a", 1), ("b", 1)]));
        assert_eq!(chosen(free(), vec![job(1, 0, 1), job(2, 0, 9)]), pairs(&[("a", 1), ("b", 2), ("c", 2)]));
        let working = vec![node("a", Some(1)), node("b", Some(2))];
        assert_eq!(
            chosen(working, vec![job(1, 0, 9), job(2, 5, 2)]),
            pairs(&[("a", 1), ("b", 2)]),
            "b takes both rows"
        );
    }

    #[test]
    fn barred_and_unusable_nodes_are_left_out_and_the_plan_says_why() {
        let mut away = node("c", None);
        away.unusable = Some("no word from it for 7 s".to_owned());
        let mut only = job(1, 0, 9);
        only.barred.insert("b".into(), "its last worker failed; next try in 4 s".to_owned());
        let view = View { nodes: vec![node("a", None), node("b", None), away], jobs: vec![only] };
        let assignment = assign(&view);
        assert_eq!(assignment.nodes.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["a"]);
        let texts: Vec<&str> =
            assignment.plans[&JobId(1)].reasons.iter().map(|reason| reason.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "one worker with the whole model, on a",
                "not on b: its last worker failed; next try in 4 s",
                "not on c: no word from it for 7 s",
            ]
        );
    }

    /// A job that needs nodes a and b together.
    fn needs_both(id: u64, priority: i32) -> JobView {
        let stage = Stage { span: Span { first: 0, end: 1 }, need: Need::default(), budget_bytes: 1 };
        let rank = |node: &str, first: u32| RankPlan {
            node: node.into(),
            stage: Stage { span: Span { first, end: first + 1 }, ..stage },
            ring_address: None,
            control_address: None,
            rdma_devices: Vec::new(),
        };
        let gang = GangPlan {
            mode: Mode::Pipeline,
            backend: Backend::Ring,
            link_kind: LinkKind::Network,
            links: Vec::new(),
            coordinator: None,
            ranks: vec![rank("a", 1), rank("b", 0)],
        };
        let layout =
            Layout::Gangs { gangs: vec![gang], layers: 2, limits: Limits::NONE, reasons: Vec::new() };
        JobView { layout: Arc::new(layout), ..job(id, priority, 9) }
    }

    #[test]
    fn nodes_of_a_gang_are_kept_for_it_until_the_last_of_them_is_free() {
        let ending = NodeView {
            unusable: Some("its worker for j3 is still ending".to_owned()),
            ending: true,
            ..node("b", None)
        };
        let view = View {
            nodes: vec![node("a", None), ending, node("c", None)],
            jobs: vec![needs_both(1, 0), job(2, 0, 99)],
        };
        let assignment = assign(&view);
        assert_eq!(super::super::check(&assignment, &view), vec![]);
        let given: Vec<(&str, u64)> =
            assignment.nodes.iter().map(|(node, job)| (node.as_str(), job.0)).collect();
        assert_eq!((given, assignment.gangs.len()), (vec![("c", 2)], 0), "a waits for b");

        let free = View { nodes: vec![node("a", None), node("b", None)], jobs: view.jobs };
        let assignment = assign(&free);
        assert_eq!(super::super::check(&assignment, &free), vec![]);
        assert_eq!((assignment.nodes.len(), assignment.gangs.len()), (2, 1));
    }

    proptest::proptest! {
        #[test]
        fn what_is_assigned_always_passes_the_check(
            nodes in proptest::collection::vec((proptest::bool::ANY, proptest::option::of(1_u64..5)), 0..6),
            jobs in proptest::collection::vec((-1_i32..2, 0_u32..3, 0_usize..6), 0..4),
        ) {
            let nodes: Vec<NodeView> = nodes.into_iter().enumerate().map(|(i, (usable, running))| NodeView {
                id: format!("n{i}").as_str().into(),
                unusable: (!usable).then(|| "away".to_owned()),
                running: running.map(JobId),
                held_rows: 0,
                ending: false,
            }).collect();
            let jobs: Vec<JobView> = jobs.into_iter().enumerate().map(|(i, (priority, waiting, barred))| {
                let mut view = job(i as u64 + 1, priority, waiting);
                view.barred.insert(format!("n{barred}").as_str().into(), "barred".to_owned());
                view
            }).collect();
            let view = View { nodes, jobs };
            let assignment = assign(&view);
            proptest::prop_assert_eq!(super::super::check(&assignment, &view), vec![]);
            proptest::prop_assert_eq!(assign(&view), assignment);
        }
    }
}
