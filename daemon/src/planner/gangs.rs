//! Which nodes make a gang, and who does what in it.
//!
//! Promises: as few nodes as hold the model, the largest first; they form a ring of links that may be used, and rank 0
//! reaches every other; over RDMA there is a network apart from the cables on which all meet; no rank is over its budget; equal
//! inputs give equal gangs.

use core::net::IpAddr;
use std::collections::BTreeMap;

use super::{
    links::{Network, meeting_place},
    question::{Candidate, GangPlan, Question, RankPlan},
    rings::find_ring,
};
use crate::{
    fit::{self, Floor, Stage, gigabytes},
    model::{Backend, Link, LinkKind, Mode, NodeId},
};

/// Combinations of nodes looked at for each number of ranks. All of them for eight nodes and fewer.
const MOST_COMBINATIONS: usize = 512;

/// Up to so many nodes every combination is tried; among more, one that is joined and too small ends the search for its
/// number of ranks, because nodes come largest first.
const TRY_ALL_NODES: usize = 8;

/// Places in a ring tried as rank 0.
const MOST_STARTS: usize = 8;

/// JACCL's own limit for a full mesh (FIELD-NOTES 1).
const MOST_MESH_RANKS: usize = 8;

/// The nodes that may be used, largest first, and the links between them. Nodes go by their place in it.
pub(super) struct Field<'a> {
    nodes: Vec<&'a Candidate>,
    /// Row by row, for each pair of places: the best one for TCP.
    tcp: Vec<Option<&'a Link>>,
    /// The same for RDMA.
    rdma: Vec<Option<&'a Link>>,
}

impl<'a> Field<'a> {
    pub(super) fn new(candidates: &'a [Candidate], links: &'a [Link]) -> Self {
        let mut nodes: Vec<&Candidate> = candidates.iter().filter(|c| c.budget_bytes > 0).collect();
        nodes.sort_by(|a, b| b.budget_bytes.cmp(&a.budget_bytes).then_with(|| a.node.cmp(&b.node)));
        let places: BTreeMap<&NodeId, usize> =
            nodes.iter().zip(0..).map(|(node, place)| (&node.node, place)).collect();
        let none = vec![None; nodes.len() * nodes.len()];
        let (mut tcp, mut rdma) = (none.clone(), none);
        for link in links {
            if let (Some(a), Some(b)) = (places.get(&link.a.node), places.get(&link.b.node)) {
                let joined = if link.kind == LinkKind::Rdma { &mut rdma } else { &mut tcp };
                for at in [a * nodes.len() + b, b * nodes.len() + a] {
                    let is_better = joined[at].is_none_or(|other: &Link| link.kind < other.kind);
                    joined[at] = if is_better { Some(link) } else { joined[at] };
                }
            }
        }
        Self { nodes, tcp, rdma }
    }

    pub(super) fn nodes(&self) -> &[&'a Candidate] {
        &self.nodes
    }

    fn tcp(&self, one: usize, other: usize) -> Option<&'a Link> {
        self.tcp[one * self.nodes.len() + other]
    }

    fn rdma(&self, one: usize, other: usize) -> Option<&'a Link> {
        self.rdma[one * self.nodes.len() + other]
    }

    /// An address of one node at which all these others find it, over no cable.
    fn meeting_place(&self, lead: usize, others: &[usize]) -> Option<IpAddr> {
        let of_others: Vec<&[Network]> =
            others.iter().map(|other| self.nodes[*other].networks.as_slice()).collect();
        meeting_place(&self.nodes[lead].networks, &of_others)
    }

    /// Why a gang does without RDMA that joins its nodes.
    pub(super) fn why_not_rdma(&self, gang: &GangPlan) -> Option<String> {
        let place = |rank: &RankPlan| self.nodes.iter().position(|node| node.node == rank.node);
        let places: Vec<usize> = gang.ranks.iter().filter_map(place).collect();
        let has_rdma = find_ring(places.len(), |a, b| self.rdma(places[a], places[b]).is_some()).is_some();
        (has_rdma && !gang.backend.is_rdma()).then(|| {
            "not by RDMA: its ranks arrange how they talk over a private network apart from the cables (IPv4), and there is none \
             that all of these nodes are on with an address of their own"
                .to_owned()
        })
    }

    fn budget(&self, place: usize) -> u64 {
        self.nodes[place].budget_bytes
    }

    fn names(&self, places: &[usize]) -> String {
        let names: Vec<&str> = places.iter().map(|place| self.nodes[*place].node.as_str()).collect();
        names.join(", ")
    }
}

/// As many gangs as there is work for, each of nodes that no other has.
///
/// # Errors
/// Why there is not even one.
pub(super) fn form_all(
    question: &Question<'_>,
    field: &Field<'_>,
    mode: Mode,
) -> Result<Vec<GangPlan>, String> {
    let mut left: Vec<usize> = (0..field.nodes.len()).collect();
    if left.len() < 2 {
        return Err("it takes two nodes at least".to_owned());
    }
    let mut gangs = Vec::new();
    while gangs.len() < question.most_gangs.max(1) {
        match form(question, field, &left, mode) {
            Ok(places) => {
                left.retain(|place| !places.by_rank.contains(place));
                gangs.push(places.into_plan(field, mode));
            }
            Err(why) if gangs.is_empty() => return Err(why),
            Err(_) => break,
        }
    }
    Ok(gangs)
}

/// A gang by the places of its nodes.
struct Formation {
    backend: Backend,
    by_rank: Vec<usize>,
    stages: Vec<Stage>,
    coordinator: Option<IpAddr>,
}

/// The first gang of as few of these nodes as possible.
fn form(question: &Question<'_>, field: &Field<'_>, left: &[usize], mode: Mode) -> Result<Formation, String> {
    let mut obstacle = None;
    let mut unreachable = None;
    let floor = Floor::new(question.facts, &question.load);
    for count in 2..=left.len().min(question.facts.layers.len()) {
        if mode == Mode::Tensor
            && let Some(why) = fit::tensor_obstacle(question.facts, count as u64)
        {
            obstacle.get_or_insert(why);
            continue;
        }
        // If the largest ones are too small, no others will do.
        let budgets: Vec<u64> = left[..count].iter().map(|place| field.budget(*place)).collect();
        let may = match mode {
            Mode::Tensor => {
                question
                    .facts
                    .divided(count as u64, &question.load, budgets.iter().copied().min().unwrap_or(0))
                    .free_bytes()
                    >= 0
            }
            _ => floor.may_hold(&budgets),
        };
        if !may {
            continue;
        }
        for combination in combinations(left.len(), count).take(MOST_COMBINATIONS) {
            let places: Vec<usize> = combination.into_iter().map(|index| left[index]).collect();
            let ways = backends_of(field, &places);
            if ways.is_empty() {
                unreachable.get_or_insert_with(|| field.names(&places));
                continue;
            }
            if let Some(found) = ways.into_iter().find_map(|way| arrange(question, field, way, mode)) {
                return Ok(found);
            }
            if left.len() > TRY_ALL_NODES {
                break;
            }
        }
    }
    Err(if let Some(names) = unreachable {
        format!("no allowed links join {names} into a ring with one node that reaches all")
    } else if let Some(why) = obstacle {
        why
    } else {
        let total: u64 = left.iter().map(|place| field.budget(*place)).sum();
        format!(
            "{} nodes together do not hold it: {} of weights alone, and budgets of {} in all, each of which has to hold \
             its own part with caches and all",
            left.len(),
            gigabytes(question.facts.weight_bytes()),
            gigabytes(total)
        )
    })
}

/// The backends that the links of these nodes allow, the best first, each with the nodes in ring order.
fn backends_of(field: &Field<'_>, places: &[usize]) -> Vec<(Backend, Vec<usize>)> {
    let rdma = |a: usize, b: usize| field.rdma(places[a], places[b]).is_some();
    let tcp = |a: usize, b: usize| field.tcp(places[a], places[b]).is_some();
    let in_places =
        |ring: Vec<usize>| -> Vec<usize> { ring.into_iter().map(|index| places[index]).collect() };
    let is_mesh = places.len() <= MOST_MESH_RANKS
        && (0..places.len()).all(|a| (a + 1..places.len()).all(|b| rdma(a, b)));
    let over_rdma = if is_mesh { Backend::Jaccl } else { Backend::JacclRing };
    let by_rdma = find_ring(places.len(), rdma).map(|ring| (over_rdma, in_places(ring)));
    let by_tcp = find_ring(places.len(), tcp).map(|ring| (Backend::Ring, in_places(ring)));
    by_rdma.into_iter().chain(by_tcp).collect()
}

/// Puts the nodes of a ring in order of rank and gives each its part. The largest node is rank 0, where the head, the
/// logits and the text work are, unless only another reaches all ranks.
fn arrange(
    question: &Question<'_>,
    field: &Field<'_>,
    (backend, ring): (Backend, Vec<usize>),
    mode: Mode,
) -> Option<Formation> {
    let count = ring.len();
    // Rows go from rank 0 to the others by TCP, whatever the ranks compute over.
    let reaches_all = |start: usize| {
        (0..count).all(|other| other == start || field.tcp(ring[start], ring[other]).is_some())
    };
    let mut starts: Vec<usize> = (0..count).filter(|start| reaches_all(*start)).collect();
    // Places are in order of size.
    starts.sort_by_key(|start| ring[*start]);
    for start in starts.into_iter().take(MOST_STARTS) {
        let by_rank: Vec<usize> = (0..count).map(|rank| ring[(start + rank) % count]).collect();
        let coordinator = field.meeting_place(by_rank[0], &by_rank[1..]);
        if backend.is_rdma() && coordinator.is_none() {
            continue;
        }
        let budgets = by_rank.iter().map(|place| field.budget(*place));
        let stages: Vec<Stage> = match mode {
            Mode::Pipeline => {
                // The last rank has the first layers.
                let from_first: Vec<u64> = budgets.rev().collect();
                if !fit::can_hold(question.facts, &question.load, &from_first) {
                    continue;
                }
                fit::split(question.facts, &question.load, &from_first)?.into_iter().rev().collect()
            }
            _ => budgets.map(|budget| question.facts.divided(count as u64, &question.load, budget)).collect(),
        };
        if stages.iter().all(|stage| stage.free_bytes() >= 0) {
            let coordinator = coordinator.filter(|_| backend.is_rdma());
            return Some(Formation { backend, by_rank, stages, coordinator });
        }
    }
    None
}

impl Formation {
    fn into_plan(self, field: &Field<'_>, mode: Mode) -> GangPlan {
        let Self { backend, by_rank, stages, coordinator } = self;
        let count = by_rank.len();
        let tcp = |rank: usize, other: usize| field.tcp(by_rank[rank], by_rank[other]);
        let rdma = |rank: usize, other: usize| {
            field.rdma(by_rank[rank], by_rank[other]).filter(|_| backend.is_rdma())
        };
        let name = |rank: usize| &field.nodes[by_rank[rank]].node;
        let address_at = |rank: usize, other: usize| Some(tcp(rank, other)?.end_at(name(rank))?.address);
        let device_at =
            |rank: usize, other: usize| rdma(rank, other)?.end_at(name(rank))?.rdma_device.clone();
        let ranks = stages.into_iter().enumerate().map(|(rank, stage)| RankPlan {
            node: name(rank).clone(),
            stage,
            // A rank connects to the next one and listens for the one before it.
            ring_address: address_at(rank, (rank + count - 1) % count).filter(|_| backend == Backend::Ring),
            control_address: if rank == 0 { None } else { address_at(0, rank) },
            rdma_devices: (0..count).map(|other| device_at(rank, other)).collect(),
        });
        let links = links_used(backend, count, tcp, rdma);
        let computed_over = |link: &&Link| (link.kind == LinkKind::Rdma) == backend.is_rdma();
        let link_kind = links.iter().filter(computed_over).map(|link| link.kind).max();
        GangPlan {
            mode,
            backend,
            link_kind: link_kind.unwrap_or(LinkKind::Network),
            links,
            coordinator,
            ranks: ranks.collect(),
        }
    }
}

/// The links that a gang of so many ranks uses, of those for TCP and for RDMA between two ranks.
pub fn links_used<'a>(
    backend: Backend,
    ranks: usize,
    tcp: impl Fn(usize, usize) -> Option<&'a Link>,
    rdma: impl Fn(usize, usize) -> Option<&'a Link>,
) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    for (rank, other) in (0..ranks).flat_map(|rank| (rank + 1..ranks).map(move |other| (rank, other))) {
        let are_neighbours = rank + 1 == other || (rank == 0 && other + 1 == ranks);
        let computes = match backend {
            Backend::Ring => tcp(rank, other).filter(|_| are_neighbours),
            Backend::JacclRing => rdma(rank, other).filter(|_| are_neighbours),
            Backend::Jaccl => rdma(rank, other),
        };
        // Rows go from rank 0 to the others.
        let told = tcp(rank, other).filter(|_| rank == 0);
        for link in [computes, told].into_iter().flatten() {
            if !links.contains(link) {
                links.push(link.clone());
            }
        }
    }
    links
}

/// Index combinations in the order of the sum of their places, roughly: lexicographic over candidates sorted by size.
fn combinations(of: usize, count: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next: Option<Vec<usize>> = (count <= of).then(|| (0..count).collect());
    std::iter::from_fn(move || {
        let current = next.clone()?;
        let mut following = current.clone();
        let movable = (0..count).rev().find(|at| following[*at] < of - count + at);
        next = movable.map(|at| {
            following[at] += 1;
            for later in at + 1..count {
                following[later] = following[later - 1] + 1;
            }
            following
        });
        Some(current)
    })
}
