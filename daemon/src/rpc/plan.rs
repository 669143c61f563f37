//! Answers "where does this model fit, and how would it run?" in the protocol's types. Decides nothing itself: the sums
//! are `fit`'s, the choice is the planner's.

use std::collections::{BTreeMap, BTreeSet};

use nightshift_proto::v1;

use crate::{
    fit::{Advice, Dtype, ModelFacts, ModelFiles, NodeMemory, Stage, Tensor, Verdict, Workload, gigabytes},
    model::{Backend, JobSpec, Link, LinkEnd, LinkKind, Measurement, Mode, NodeId},
    planner::{
        Answer, Candidate, Choice, Network, NodeInterfaces, Question, Wish, choose, links, meeting_networks,
    },
    recovery::{Policy, WorkerSettings},
};

/// Prompt and answer of an ordinary night's row.
const DEFAULT_CONTEXT_TOKENS: u64 = 4_096;
/// More nodes than a cluster has; the planner's time grows with them.
const MOST_NODES: usize = 64;
/// Larger numbers are no plan but a mistake, and would only make sums meaningless.
pub(crate) const MOST_CONTEXT_TOKENS: u64 = 16 << 20;

/// A node as a plan needs it.
#[derive(Clone, Debug)]
pub(crate) struct PlanNode {
    pub(crate) node: NodeId,
    pub(crate) memory: NodeMemory,
    /// Why it cannot take part.
    pub(crate) unusable: Option<String>,
    pub(crate) interfaces: NodeInterfaces,
}

/// The cluster as a plan needs it.
#[derive(Clone, Debug)]
pub(crate) struct PlanView {
    pub(crate) nodes: Vec<PlanNode>,
    pub(crate) networks: Vec<Network>,
    /// Whether ranks may talk by RDMA.
    pub(crate) rdma: bool,
    pub(crate) settings: WorkerSettings,
    /// How fast models have run here, by the fingerprint of their files.
    pub(crate) measurements: BTreeMap<String, Vec<Measurement>>,
}

/// Adds a report up.
///
/// # Errors
/// A sentence.
pub(crate) fn facts_of(report: &v1::ModelReport) -> Result<ModelFacts, String> {
    if !report.problem.is_empty() {
        return Err(report.problem.clone());
    }
    let config = serde_json::from_slice(&report.config_json)
        .map_err(|error| format!("its config.json cannot be read: {error}"))?;
    let tensors = report.tensors.iter().map(|tensor| Tensor {
        name: tensor.name.clone(),
        dtype: Dtype::parse(&tensor.dtype),
        bytes: tensor.bytes,
    });
    ModelFacts::new(&ModelFiles { config, tensors: tensors.collect() })
}

/// For machines that one does not have yet: everything is in the request.
#[must_use]
pub fn offline(request: &v1::PlanRequest) -> v1::PlanReply {
    let settings = JobSpec::default().settings(&Policy::default());
    let Some(report) = &request.report else {
        return problem("a plan for given nodes needs the model's report");
    };
    let facts = match facts_of(report) {
        Ok(facts) => facts,
        Err(why) => return problem(why),
    };
    if request.nodes.len() > MOST_NODES {
        return problem(format!(
            "{} nodes are more than the {MOST_NODES} that can be planned for",
            request.nodes.len()
        ));
    }
    let names: BTreeSet<&str> = request.nodes.iter().map(|node| node.node_id.as_str()).collect();
    if names.len() < request.nodes.len() || names.contains("") {
        return problem("every node needs a name of its own");
    }
    let given = |bytes: u64| (bytes > 0).then_some(bytes);
    let nodes: Vec<Planned> = request
        .nodes
        .iter()
        .zip(1_u32..)
        .map(|(node, place)| {
            let memory = NodeMemory {
                total_bytes: given(node.memory_bytes),
                wired_limit_bytes: given(node.wired_limit_bytes),
                configured_bytes: given(node.budget_bytes),
                ..NodeMemory::default()
            };
            // Whoever buys Macs has a network, too.
            let network = Network::parse(&format!("10.0.0.{place}/24"));
            Planned { node: node.node_id.as_str().into(), memory, networks: network.into_iter().collect() }
        })
        .collect();
    let links = all_joined(&nodes, request.nodes_have_rdma);
    // Machines one plans to buy are Macs.
    reply(
        request,
        &facts,
        &nodes,
        &Known { on_gpu: true, links: &links, measurements: &[] },
        settings,
        Vec::new(),
    )
}

/// For the nodes that are connected, with what each said of the model.
pub(crate) fn live(
    request: &v1::PlanRequest,
    view: &PlanView,
    reports: &BTreeMap<NodeId, v1::ModelReport>,
) -> v1::PlanReply {
    let mut left_out = Vec::new();
    let mut leave_out = |node: &NodeId, rule: &str, why: &str| {
        left_out.push(v1::PlanReason {
            rule: rule.to_owned(),
            node_id: node.to_string(),
            text: format!("not on {node}: {why}"),
        });
    };
    // Of nodes with different files under one name, the most of one kind are planned for.
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for report in reports.values().filter(|report| report.problem.is_empty()) {
        *kinds.entry(&report.fingerprint).or_default() += 1;
    }
    let kind = kinds
        .into_iter()
        .max_by_key(|(kind, count)| (*count, std::cmp::Reverse(*kind)))
        .map(|(kind, _)| kind);
    let mut nodes = Vec::new();
    let mut interfaces = Vec::new();
    for node in &view.nodes {
        if let Some(why) = &node.unusable {
            leave_out(&node.node, "unusable", why);
            continue;
        }
        match reports.get(&node.node) {
            None => leave_out(&node.node, "no-answer", "it did not say in time whether it has the model"),
            Some(report) if !report.problem.is_empty() => leave_out(&node.node, "no-model", &report.problem),
            Some(report) if Some(report.fingerprint.as_str()) != kind => {
                leave_out(&node.node, "other-files", "it has other files under this name than most nodes");
            }
            Some(_) => {
                let of = &node.interfaces;
                let networks = meeting_networks(&of.interfaces, &of.thunderbolt);
                nodes.push(Planned { node: node.node.clone(), memory: node.memory, networks });
                interfaces.push(of.clone());
            }
        }
    }
    let Some(report) = reports
        .values()
        .find(|report| Some(report.fingerprint.as_str()) == kind && report.problem.is_empty())
    else {
        let why = match left_out.as_slice() {
            [] => "no node is connected".to_owned(),
            left_out => {
                let texts: Vec<&str> = left_out.iter().map(|reason| reason.text.as_str()).collect();
                format!("no node has the model \"{}\" ready to be read ({})", request.model, texts.join("; "))
            }
        };
        return v1::PlanReply { left_out, ..problem(why) };
    };
    match facts_of(report) {
        Ok(facts) => {
            let links = links(&interfaces, &view.networks, view.rdma);
            let known = Known {
                on_gpu: nodes.iter().all(|node| node.memory.has_metal),
                links: &links,
                measurements: view.measurements.get(&report.fingerprint).map_or(&[], Vec::as_slice),
            };
            reply(request, &facts, &nodes, &known, view.settings, left_out)
        }
        Err(why) => v1::PlanReply { left_out, ..problem(why) },
    }
}

fn problem(why: impl Into<String>) -> v1::PlanReply {
    v1::PlanReply { problem: why.into(), ..v1::PlanReply::default() }
}

/// A node that is planned for.
struct Planned {
    node: NodeId,
    memory: NodeMemory,
    networks: Vec<Network>,
}

/// What is known besides the model and the nodes' memory.
struct Known<'a> {
    on_gpu: bool,
    links: &'a [Link],
    measurements: &'a [Measurement],
}

fn reply(
    request: &v1::PlanRequest,
    facts: &ModelFacts,
    nodes: &[Planned],
    known: &Known<'_>,
    settings: WorkerSettings,
    mut left_out: Vec<v1::PlanReason>,
) -> v1::PlanReply {
    let mut candidates = Vec::new();
    for Planned { node, memory, networks } in nodes {
        match memory.budget() {
            Some(budget) => candidates.push(Candidate {
                node: node.clone(),
                budget_bytes: budget.bytes,
                networks: networks.clone(),
            }),
            None => left_out.push(v1::PlanReason {
                rule: "no-memory".to_owned(),
                node_id: node.to_string(),
                text: format!("not on {node}: it does not say how much memory it has"),
            }),
        }
    }
    if candidates.is_empty() {
        return v1::PlanReply { left_out, ..problem("there is no node to plan for") };
    }
    let wish = super::convert::mode(request.mode()).map_or(Wish::Auto, Wish::Only);
    let load = Workload {
        rows: u64::from(if request.rows == 0 { settings.max_batch_rows } else { request.rows }),
        context_tokens: match request.context_tokens {
            0 => facts.context_tokens.unwrap_or(u64::MAX).min(DEFAULT_CONTEXT_TOKENS),
            tokens => tokens.min(MOST_CONTEXT_TOKENS),
        },
        prefill_rows: u64::from(settings.prefill_batch_rows),
        prefill_step_tokens: u64::from(settings.prefill_step_tokens),
        on_gpu: known.on_gpu,
    };
    let question = Question {
        facts,
        load,
        wish,
        candidates: &candidates,
        links: known.links,
        measurements: known.measurements,
        most_gangs: candidates.len(),
    };
    let answer = choose(&question);
    let (mode, backend) = mode_and_backend(&answer.choice);
    let fits = !matches!(answer.choice, Choice::Refused { .. });
    v1::PlanReply {
        fits,
        problem: String::new(),
        model: Some(size(&request.model, facts, &load)),
        mode: mode.into(),
        backend: backend.into(),
        rows: if fits { answer.load.rows } else { 0 },
        context_tokens: load.context_tokens,
        prefill_rows: answer.load.prefill_rows.min(answer.load.rows),
        prefill_step_tokens: answer.load.prefill_step_tokens,
        largest_rows: answer.largest_rows,
        largest_context_tokens: answer.largest_context_tokens,
        parts: parts(&answer.choice),
        advice: advice(&answer),
        reasons: answer
            .reasons
            .iter()
            .map(|reason| v1::PlanReason {
                rule: reason.rule.to_owned(),
                node_id: reason.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                text: reason.text.clone(),
            })
            .collect(),
        alternatives: answer
            .alternatives
            .iter()
            .map(|other| v1::PlanAlternative {
                mode: mode_out(other.mode).into(),
                chosen: other.chosen,
                why: other.why.clone(),
            })
            .collect(),
        left_out,
    }
}

/// Planned machines are taken to stand side by side, each cabled to every other.
fn all_joined(nodes: &[Planned], rdma: bool) -> Vec<Link> {
    let end = |node: &Planned, kind: LinkKind| LinkEnd {
        node: node.node.clone(),
        interface: "planned".to_owned(),
        address: core::net::Ipv4Addr::UNSPECIFIED.into(),
        rdma_device: (kind == LinkKind::Rdma).then(|| "planned".to_owned()),
    };
    let mut links = Vec::new();
    for (index, one) in nodes.iter().enumerate() {
        for other in &nodes[index + 1..] {
            let kinds = [LinkKind::Rdma, LinkKind::Thunderbolt].into_iter().skip(usize::from(!rdma));
            links.extend(kinds.map(|kind| Link { a: end(one, kind), b: end(other, kind), kind }));
        }
    }
    links
}

pub(crate) fn mode_out(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Independent => v1::Mode::Independent,
        Mode::Pipeline => v1::Mode::Pipeline,
        Mode::Tensor => v1::Mode::Tensor,
    }
}

pub(crate) fn backend_out(backend: Backend) -> v1::Backend {
    match backend {
        Backend::Ring => v1::Backend::Ring,
        Backend::Jaccl => v1::Backend::Jaccl,
        Backend::JacclRing => v1::Backend::JacclRing,
    }
}

fn mode_and_backend(choice: &Choice) -> (v1::Mode, v1::Backend) {
    match choice {
        Choice::Independent(_) => (v1::Mode::Independent, v1::Backend::None),
        Choice::Gangs(gangs) => match gangs.first() {
            Some(gang) => (mode_out(gang.mode), backend_out(gang.backend)),
            None => (v1::Mode::Unspecified, v1::Backend::Unspecified),
        },
        Choice::Refused { .. } => (v1::Mode::Unspecified, v1::Backend::Unspecified),
    }
}

fn size(model: &str, facts: &ModelFacts, load: &Workload) -> v1::ModelSize {
    let of =
        |part: fn(&crate::fit::Weights) -> u64| facts.layers.iter().map(|layer| part(&layer.weights)).sum();
    let one_row = facts.alone(&Workload { rows: 1, ..*load }, 0).need.cache;
    v1::ModelSize {
        model: model.to_owned(),
        architecture: facts.architecture.clone(),
        layers: u32::try_from(facts.layers.len()).unwrap_or(u32::MAX),
        weight_bytes: facts.weight_bytes(),
        embeddings_bytes: facts.embeddings_bytes,
        head_bytes: facts.head_bytes,
        attention_bytes: of(|weights| weights.attention),
        mlp_bytes: of(|weights| weights.mlp),
        experts_bytes: of(|weights| weights.experts),
        other_bytes: of(|weights| weights.router + weights.norms + weights.other)
            + facts.final_norm_bytes
            + facts.elsewhere_bytes,
        not_loaded_bytes: facts.not_loaded_bytes,
        cache_bytes_per_row: one_row,
        cache_is_exact: facts.cache_is_exact,
        context_tokens: facts.context_tokens.unwrap_or(0),
        notes: facts.notes.clone(),
    }
}

fn parts(choice: &Choice) -> Vec<v1::PlanPart> {
    match choice {
        Choice::Independent(nodes) => nodes.iter().map(|(node, stage)| part(node, stage, 0, 0)).collect(),
        Choice::Refused { best_try, .. } => {
            best_try.iter().map(|(node, stage)| part(node, stage, 0, 0)).collect()
        }
        Choice::Gangs(gangs) => gangs
            .iter()
            .zip(0..)
            .flat_map(|(gang, index)| {
                gang.ranks
                    .iter()
                    .zip(0..)
                    .map(move |(rank, number)| part(&rank.node, &rank.stage, index, number))
            })
            .collect(),
    }
}

fn part(node: &NodeId, stage: &Stage, gang: u32, rank: u32) -> v1::PlanPart {
    let need = &stage.need;
    v1::PlanPart {
        node_id: node.to_string(),
        gang,
        rank,
        first_layer: stage.span.first,
        end_layer: stage.span.end,
        layer_bytes: need.layer_weights,
        embeddings_bytes: need.embeddings,
        head_bytes: need.head,
        cache_bytes: need.cache,
        activation_bytes: need.activations,
        overhead_bytes: need.overhead,
        total_bytes: need.total(),
        budget_bytes: stage.budget_bytes,
        free_bytes: i64::try_from(stage.free_bytes()).unwrap_or(i64::MIN),
    }
}

fn advice(answer: &Answer) -> Vec<String> {
    let Choice::Refused { verdict, advice, .. } = &answer.choice else { return Vec::new() };
    let mut sentences: Vec<String> = advice
        .iter()
        .map(|advice| match advice {
            Advice::FewerRows { rows } => format!("It fits with {rows} rows together."),
            Advice::ShorterContext { tokens } | Advice::OneRowShorterContext { tokens } => {
                format!("It fits with a context of {tokens} tokens, one row at a time.")
            }
            Advice::FewerBits { bits } => {
                format!("It fits when it is quantised to {bits} bits a weight, roughly.")
            }
            Advice::MoreNodes { nodes: 1, budget_bytes } => {
                format!("It fits with one more node that has a budget of {}.", gigabytes(*budget_bytes))
            }
            Advice::MoreNodes { nodes, budget_bytes } => {
                format!(
                    "It fits with {nodes} more nodes that have a budget of {} each.",
                    gigabytes(*budget_bytes)
                )
            }
        })
        .collect();
    if sentences.is_empty() && !matches!(verdict, Verdict::Fits { .. }) {
        sentences.push("Nothing short of a smaller model helps on nodes of this size.".to_owned());
    }
    sentences
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn report(layer_bytes: u64, layers: usize) -> v1::ModelReport {
        let tensor = |name: String| v1::ModelTensor { name, dtype: "BF16".to_owned(), bytes: layer_bytes };
        v1::ModelReport {
            config_json: json!({
                "model_type": "llama", "num_hidden_layers": layers, "hidden_size": 4_096, "num_attention_heads": 32,
                "num_key_value_heads": 8, "intermediate_size": 11_008, "vocab_size": 32_000,
                "max_position_embeddings": 8_192,
            })
            .to_string()
            .into(),
            tensors: (0..layers).map(|index| tensor(format!("model.layers.{index}.mlp.up_proj.weight"))).collect(),
            fingerprint: format!("{layer_bytes}"),
            ..v1::ModelReport::default()
        }
    }

    fn node(name: &str, gb: u64) -> v1::PlannedNode {
        v1::PlannedNode { node_id: name.to_owned(), budget_bytes: gb * GB, ..v1::PlannedNode::default() }
    }

    fn request(nodes: Vec<v1::PlannedNode>, report: v1::ModelReport) -> v1::PlanRequest {
        v1::PlanRequest { model: "m".to_owned(), nodes, report: Some(report), ..v1::PlanRequest::default() }
    }

    #[test]
    fn offline_plans_say_who_carries_what() {
        let plan = offline(&request(vec![node("a", 60), node("b", 60)], report(GB, 80)));
        assert!(plan.fits && plan.problem.is_empty(), "{plan:#?}");
        assert_eq!((plan.mode(), plan.backend()), (v1::Mode::Pipeline, v1::Backend::Ring));
        let layers: Vec<_> =
            plan.parts.iter().map(|part| (part.rank, part.first_layer, part.end_layer)).collect();
        assert_eq!(layers, [(0, 40, 80), (1, 0, 40)], "rank 0 has the last layers");
        for part in &plan.parts {
            assert_eq!(part.free_bytes, part.budget_bytes as i64 - part.total_bytes as i64);
        }
        assert_eq!(plan.context_tokens, 4_096);

        let refused = offline(&request(vec![node("a", 30), node("b", 30)], report(GB, 80)));
        assert!(!refused.fits && refused.parts.iter().all(|part| part.free_bytes < 0), "{refused:#?}");
        assert_eq!(
            refused.advice,
            [
                "It fits when it is quantised to 8 bits a weight, roughly.",
                "It fits with one more node that has a budget of 30.0 GB."
            ]
        );
    }

    #[test]
    fn what_cannot_be_planned_says_why() {
        let of = |request: &v1::PlanRequest| offline(request).problem;
        let fine = request(vec![node("a", 30)], report(GB, 2));
        assert_eq!(of(&fine), "");
        assert_eq!(
            of(&v1::PlanRequest { report: None, ..fine.clone() }),
            "a plan for given nodes needs the model's report"
        );
        let twice = v1::PlanRequest { nodes: vec![node("a", 1), node("a", 1)], ..fine.clone() };
        assert_eq!(of(&twice), "every node needs a name of its own");
        assert_eq!(
            of(&v1::PlanRequest { nodes: Vec::new(), ..fine.clone() }),
            "there is no node to plan for"
        );
        let many = (0..65).map(|index| node(&format!("n{index}"), 1)).collect();
        assert_eq!(
            of(&v1::PlanRequest { nodes: many, ..fine.clone() }),
            "65 nodes are more than the 64 that can be planned for"
        );
        let broken = v1::ModelReport { config_json: b"{".as_slice().into(), ..report(GB, 2) };
        assert!(of(&request(vec![node("a", 1)], broken)).starts_with("its config.json cannot be read: "));
        let unknown = v1::PlannedNode { node_id: "x".to_owned(), ..v1::PlannedNode::default() };
        let plan = offline(&v1::PlanRequest { nodes: vec![node("a", 30), unknown], ..fine });
        assert_eq!(plan.left_out[0].text, "not on x: it does not say how much memory it has");
    }

    #[test]
    fn live_plans_leave_out_nodes_that_cannot_and_say_why() {
        let plan_node = |name: &str, unusable: Option<&str>| PlanNode {
            node: name.into(),
            memory: NodeMemory { configured_bytes: Some(60 * GB), ..NodeMemory::default() },
            unusable: unusable.map(str::to_owned),
            interfaces: NodeInterfaces {
                node: name.into(),
                boot_id: String::new(),
                interfaces: Vec::new(),
                thunderbolt: crate::model::Thunderbolt::default(),
            },
        };
        let view = PlanView {
            nodes: vec![
                plan_node("a", None),
                plan_node("b", Some("it is drained")),
                plan_node("c", None),
                plan_node("d", None),
                plan_node("e", None),
                plan_node("f", None),
            ],
            networks: Vec::new(),
            rdma: true,
            measurements: BTreeMap::new(),
            settings: JobSpec::default().settings(&Policy::default()),
        };
        let missing = v1::ModelReport {
            problem: "there is no model directory m on this node".to_owned(),
            ..report(GB, 2)
        };
        let reports: BTreeMap<NodeId, v1::ModelReport> = [
            ("a".into(), report(GB, 40)),
            ("c".into(), missing),
            ("d".into(), report(2 * GB, 40)),
            ("e".into(), report(GB, 40)),
        ]
        .into();
        let request = v1::PlanRequest { model: "m".to_owned(), ..v1::PlanRequest::default() };
        let plan = live(&request, &view, &reports);
        assert!(plan.fits);
        let nodes: Vec<&str> = plan.parts.iter().map(|part| part.node_id.as_str()).collect();
        assert_eq!(nodes, ["a", "e"]);
        let why: Vec<&str> = plan.left_out.iter().map(|reason| reason.text.as_str()).collect();
        assert_eq!(
            why,
            [
                "not on b: it is drained",
                "not on c: there is no model directory m on this node",
                "not on d: it has other files under this name than most nodes",
                "not on f: it did not say in time whether it has the model",
            ]
        );
        let nothing = live(&request, &view, &BTreeMap::new());
        assert!(
            nothing
                .problem
                .starts_with("no node has the model \"m\" ready to be read (not on a: it did not say")
        );
    }
}
