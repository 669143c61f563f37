//! How long a plan takes: 64 nodes, each with its own memory and all in one network, and a model of a hundred layers that
//! needs many of them.

use std::time::Instant;

use nightshift_daemon::{
    fit::{Dtype, ModelFacts, ModelFiles, Tensor, Workload},
    model::{Link, LinkEnd, LinkKind, NodeId},
    planner::{Candidate, Choice, Question, Wish, choose},
};
use nightshift_tests::published;

use crate::table::{Bound, Table};

const NODES: u8 = 64;
const LAYERS: u64 = 100;
const GIB: u64 = 1 << 30;

/// The middle of as many runs.
const RUNS: usize = 51;

pub(crate) fn measure(table: &mut Table, quick: bool) {
    let model = published::dense_of(2_000_000_000_000, LAYERS);
    let tensors = model.tensors.iter().map(|tensor| Tensor {
        name: tensor.name.clone(),
        dtype: Dtype::parse(tensor.dtype),
        bytes: tensor.bytes(),
    });
    let files = ModelFiles { config: model.config.clone(), tensors: tensors.collect() };
    let facts = ModelFacts::new(&files).expect("a made-up model can be added up");
    let candidates: Vec<Candidate> = (0..NODES)
        .map(|number| Candidate {
            node: NodeId::from(format!("n{number}").as_str()),
            budget_bytes: (24 + u64::from(number) % 13 * 8) * GIB,
            networks: Vec::new(),
        })
        .collect();
    let end = |index: usize, node: &NodeId| LinkEnd {
        node: node.clone(),
        interface: "en0".to_owned(),
        address: [10, 0, 0, u8::try_from(index).expect("few nodes")].into(),
        rdma_device: None,
    };
    let mut links = Vec::new();
    for (one, a) in candidates.iter().enumerate() {
        for (other, b) in candidates.iter().enumerate().skip(one + 1) {
            links.push(Link { a: end(one, &a.node), b: end(other, &b.node), kind: LinkKind::Network });
        }
    }
    let question = Question {
        facts: &facts,
        load: Workload {
            rows: 8,
            context_tokens: 8_192,
            prefill_rows: 8,
            prefill_step_tokens: 2_048,
            on_gpu: true,
        },
        wish: Wish::Auto,
        candidates: &candidates,
        links: &links,
        measurements: &[],
        most_gangs: candidates.len(),
    };
    let runs = if quick { RUNS / 5 } else { RUNS };
    let mut times_ms: Vec<f64> = (0..runs)
        .map(|_| {
            let started = Instant::now();
            let answer = choose(&question);
            let took_ms = started.elapsed().as_secs_f64() * 1e3;
            assert!(matches!(answer.choice, Choice::Gangs(_)), "{:#?}", answer.reasons);
            took_ms
        })
        .collect();
    times_ms.sort_by(f64::total_cmp);
    table.add("planner: 64 nodes, 100 layers, median", times_ms[runs / 2], "ms", Bound::AtMost(10.0));
}
