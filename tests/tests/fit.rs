//! The cases that motivate sharding come out right: published models in their true sizes on Macs one can buy.
//!
//! Sums are those of the decision itself (`planner::choose` over `fit`); that the same numbers come from real files and
//! through the command line is the subject of `e2e`.

use nightshift_daemon::{
    fit::{Advice, Dtype, ModelFacts, ModelFiles, NodeMemory, Tensor, Verdict, Workload},
    model::{Backend, Link, LinkEnd, LinkKind, Measurement, Mode, NodeId},
    planner::{Answer, Candidate, Choice, Network, Question, Wish, choose},
};
use nightshift_tests::published::{self, EIGHT_BITS, FOUR_BITS, Published, Stored};

const GIB: u64 = 1 << 30;

/// A night's usual load.
const LOAD: Workload =
    Workload { rows: 8, context_tokens: 8_192, prefill_rows: 2, prefill_step_tokens: 512, on_gpu: true };

fn facts(model: &Published) -> ModelFacts {
    let tensors = model.tensors.iter().map(|tensor| Tensor {
        name: tensor.name.clone(),
        dtype: Dtype::parse(tensor.dtype),
        bytes: tensor.bytes(),
    });
    ModelFacts::new(&ModelFiles { config: model.config.clone(), tensors: tensors.collect() })
        .expect("a published model can be added up")
}

/// A Mac of so many GiB, its wired limit raised to so many (0: not).
fn mac(total_gib: u64, wired_gib: u64) -> u64 {
    NodeMemory {
        total_bytes: Some(total_gib * GIB),
        wired_limit_bytes: Some(wired_gib * GIB),
        ..NodeMemory::default()
    }
    .budget()
    .expect("its memory is known")
    .bytes
}

fn candidates(budgets: &[u64]) -> Vec<Candidate> {
    let name = |index: usize| NodeId::from(format!("mac{}", index + 1).as_str());
    budgets
        .iter()
        .enumerate()
        .map(|(index, budget_bytes)| Candidate {
            node: name(index),
            budget_bytes: *budget_bytes,
            networks: Network::parse(&format!("192.168.1.{}/24", index + 1)).into_iter().collect(),
        })
        .collect()
}

/// Thunderbolt between every two of them.
fn cabled(candidates: &[Candidate], rdma: bool) -> Vec<Link> {
    let mut links = Vec::new();
    for (index, one) in candidates.iter().enumerate() {
        for (other_index, other) in candidates.iter().enumerate().skip(index + 1) {
            let subnet = u8::try_from(index * 10 + other_index).expect("few nodes");
            let end = |node: &NodeId, port: usize, last: u8, kind: LinkKind| LinkEnd {
                node: node.clone(),
                interface: format!("en{port}"),
                address: [10, 0, subnet, last].into(),
                rdma_device: (kind == LinkKind::Rdma).then(|| format!("rdma_en{port}")),
            };
            let kinds = [LinkKind::Thunderbolt, LinkKind::Rdma].into_iter().take(1 + usize::from(rdma));
            links.extend(kinds.map(|kind| Link {
                a: end(&one.node, other_index, 1, kind),
                b: end(&other.node, index, 2, kind),
                kind,
            }));
        }
    }
    links
}

struct Asked<'a> {
    wish: Wish,
    rdma: bool,
    load: Workload,
    measurements: &'a [Measurement],
}

const AUTO: Asked<'static> = Asked { wish: Wish::Auto, rdma: false, load: LOAD, measurements: &[] };

fn ask(facts: &ModelFacts, budgets: &[u64], asked: &Asked<'_>) -> Answer {
    let candidates = candidates(budgets);
    let links = cabled(&candidates, asked.rdma);
    choose(&Question {
        facts,
        load: asked.load,
        wish: asked.wish,
        candidates: &candidates,
        links: &links,
        measurements: asked.measurements,
        most_gangs: 4,
    })
}

fn spans(answer: &Answer) -> Vec<Vec<u32>> {
    let Choice::Gangs(gangs) = &answer.choice else { panic!("not sharded: {answer:#?}") };
    gangs.iter().map(|gang| gang.ranks.iter().rev().map(|rank| rank.stage.span.len()).collect()).collect()
}

fn headroom(answer: &Answer) -> u64 {
    let Choice::Gangs(gangs) = &answer.choice else { panic!("not sharded: {answer:#?}") };
    let free = gangs.iter().flat_map(|gang| &gang.ranks).map(|rank| rank.stage.free_bytes()).min();
    u64::try_from(free.expect("a gang has ranks")).expect("it fits")
}

fn independent_on(answer: &Answer) -> Vec<String> {
    let Choice::Independent(nodes) = &answer.choice else { panic!("not independent: {answer:#?}") };
    nodes.iter().map(|(node, _)| node.to_string()).collect()
}

#[test]
fn sizes_are_those_that_are_published() {
    // Parameters as the models' own pages state them, by what they weigh at two bytes; routers and MTP included.
    let billions: [(&str, Published, f64); 8] = [
        ("Llama 3.1 405B", published::llama_405b(Stored::Bf16), 405.9),
        ("Qwen3 235B A22B", published::qwen3_235b(Stored::Bf16), 235.1),
        ("DeepSeek V3", published::deepseek_v3(Stored::Bf16), 671.0),
        ("Kimi K2", published::kimi_k2(Stored::Bf16), 1_026.0),
        ("GLM 4.5", published::glm_45(Stored::Bf16), 355.0),
        ("Qwen3-Next 80B", published::qwen3_next(Stored::Bf16), 79.7),
        ("Qwen2.5 72B", published::qwen_72b(Stored::Bf16), 72.7),
        ("Qwen2.5 7B", published::qwen_7b(Stored::Bf16), 7.62),
    ];
    for (name, model, expected) in billions {
        let facts = facts(&model);
        let found = facts.weight_bytes() as f64 / 2e9;
        assert!((found / expected - 1.0).abs() < 0.01, "{name}: {found} billion parameters, not {expected}");
        assert!(facts.cache_is_exact, "{name}");
        assert_eq!(facts.weight_bytes() + facts.not_loaded_bytes, model.bytes(), "{name}: every byte once");
    }
    let oss = facts(&published::gpt_oss_120b());
    let gigabytes = oss.weight_bytes() as f64 / 1e9;
    assert!((gigabytes / 65.2 - 1.0).abs() < 0.01, "gpt-oss 120B: {gigabytes} GB");
}

#[test]
fn caches_are_those_of_the_architectures() {
    let per_token = |model: &Published| {
        let facts = facts(model);
        let long = Workload { rows: 1, context_tokens: 102_400, ..LOAD };
        facts.alone(&long, 0).need.cache / 102_400
    };
    // Two bytes a number: keys and values of 8 heads of 128 in 126 layers; one latent of 576 in 61 layers; …
    assert_eq!(per_token(&published::llama_405b(FOUR_BITS)), 2 * 2 * 8 * 128 * 126);
    assert_eq!(per_token(&published::qwen3_235b(FOUR_BITS)), 2 * 2 * 4 * 128 * 94);
    assert_eq!(per_token(&published::deepseek_v3(FOUR_BITS)), 2 * 576 * 61);
    // Half of the layers keep 128 tokens and the piece being read, which is little over a long context.
    let oss = per_token(&published::gpt_oss_120b());
    assert!((2 * 2 * 8 * 64 * 18..2 * 2 * 8 * 64 * 18 * 101 / 100).contains(&oss), "{oss}");
    // Twelve layers of full attention; 36 states of about 2 MB, which is 2 % here.
    let next = per_token(&published::qwen3_next(FOUR_BITS));
    assert!((2 * 2 * 2 * 256 * 12..2 * 2 * 2 * 256 * 12 * 104 / 100).contains(&next), "{next}");
}

#[test]
fn two_hundred_gigabytes_run_as_a_pipeline_over_two_raised_macs() {
    for model in [
        published::llama_405b(FOUR_BITS),
        published::dense_of(200_000_000_000, 80),
        published::dense_of(230_000_000_000, 96),
    ] {
        let facts = facts(&model);
        assert!((199..=231).contains(&(facts.weight_bytes() / 1_000_000_000)));
        let answer = ask(&facts, &[mac(128, 120), mac(128, 120)], &AUTO);
        assert_eq!(spans(&answer).len(), 1, "one gang of two");
        assert!(headroom(&answer) > 500_000_000, "room to spare: {}", headroom(&answer));
        assert!(answer.load.rows >= 4 && answer.largest_rows >= answer.load.rows, "{answer:#?}");
        assert!(answer.largest_context_tokens >= LOAD.context_tokens);
        let Choice::Gangs(gangs) = &answer.choice else { unreachable!() };
        assert_eq!((gangs[0].mode, gangs[0].backend), (Mode::Pipeline, Backend::Ring));
        let texts: Vec<&str> = answer.reasons.iter().map(|reason| reason.rule).collect();
        let texts: Vec<&str> = texts.into_iter().filter(|rule| *rule != "fewer-rows").collect();
        assert_eq!(texts, ["too-big-for-one", "fewest-nodes", "backend", "share", "share"]);
        // Without the raised limit, three quarters are too little.
        let usual = ask(&facts, &[mac(128, 0), mac(128, 0)], &AUTO).choice;
        assert!(
            matches!(usual, Choice::Refused { .. }) || facts.weight_bytes() < 201_000_000_000,
            "{usual:#?}"
        );
    }
}

#[test]
fn a_quarter_of_a_terabyte_starves_the_cache() {
    let facts = facts(&published::dense_of(256_000_000_000, 96));
    let answer = ask(&facts, &[mac(128, 120), mac(128, 120)], &AUTO);
    let Choice::Refused { verdict, advice, best_try } = &answer.choice else { panic!("{answer:#?}") };
    let missing = match verdict {
        Verdict::CacheStarved { missing_bytes } | Verdict::TooBig { missing_bytes } => missing_bytes,
        Verdict::Fits { .. } => panic!("{verdict:?}"),
    };
    assert_eq!((missing.len(), best_try.len()), (2, 2), "for each node");
    assert!(missing.iter().any(|bytes| *bytes > 0));
    assert!(advice.iter().any(|help| matches!(help, Advice::FewerBits { .. })), "{advice:?}");
    assert!(advice.contains(&Advice::MoreNodes { nodes: 1, budget_bytes: mac(128, 120) }), "{advice:?}");
    // A little less weighs on the cache only.
    let starved = self::facts(&published::dense_of(254_000_000_000, 96));
    let load = Workload { context_tokens: 32_768, ..LOAD };
    let answer = ask(&starved, &[mac(128, 121), mac(128, 121)], &Asked { load, ..AUTO });
    let Choice::Refused { verdict: Verdict::CacheStarved { .. }, advice, .. } = &answer.choice else {
        panic!("{answer:#?}")
    };
    assert!(
        advice.iter().any(|help| matches!(
            help,
            Advice::FewerRows { .. } | Advice::ShorterContext { .. } | Advice::OneRowShorterContext { .. }
        )),
        "{advice:?}"
    );
}

#[test]
fn a_trillion_parameters_do_not_fit_two_macs_of_any_limit() {
    let facts = facts(&published::kimi_k2(FOUR_BITS));
    for wish in
        [Wish::Auto, Wish::Only(Mode::Pipeline), Wish::Only(Mode::Tensor), Wish::Only(Mode::Independent)]
    {
        let answer = ask(&facts, &[mac(128, 127), mac(128, 127)], &Asked { wish, rdma: true, ..AUTO });
        let Choice::Refused { verdict: Verdict::TooBig { .. }, .. } = answer.choice else {
            panic!("{answer:#?}")
        };
    }
}

#[test]
fn a_terabyte_runs_on_four_studios_and_not_on_one() {
    let facts = facts(&published::kimi_k2(EIGHT_BITS));
    assert!((1_000..1_150).contains(&(facts.weight_bytes() / 1_000_000_000)));
    let studio = mac(512, 0);
    assert!(matches!(ask(&facts, &[studio], &AUTO).choice, Choice::Refused { .. }));
    let answer = ask(&facts, &[studio; 4], &AUTO);
    let spans = spans(&answer);
    assert_eq!(spans.iter().map(Vec::len).collect::<Vec<_>>(), [3], "the fewest that hold it: {spans:?}");
    assert_eq!(spans[0].iter().sum::<u32>(), 61);
    // All four, where one asks for the room.
    let roomy = Workload { rows: 48, context_tokens: 131_072, ..LOAD };
    let answer = ask(&facts, &[studio; 4], &Asked { load: roomy, ..AUTO });
    assert_eq!(self::spans(&answer)[0].len(), 4);
}

#[test]
fn seventy_two_billion_run_on_three_small_macs() {
    let facts = facts(&published::qwen_72b(FOUR_BITS));
    let answer = ask(&facts, &[mac(24, 0); 3], &AUTO);
    let spans = spans(&answer);
    assert_eq!(spans[0].len(), 3);
    assert_eq!(spans[0].iter().sum::<u32>(), 80);
    let Choice::Gangs(gangs) = &answer.choice else { unreachable!() };
    let weights: u64 = gangs[0].ranks.iter().map(|rank| rank.stage.need.weights()).sum();
    assert_eq!(weights, facts.weight_bytes(), "the sums of the nodes are the model");
    for rank in &gangs[0].ranks {
        assert!(rank.stage.need.total() <= rank.stage.budget_bytes);
    }
    let shares = answer.reasons.iter().filter(|reason| reason.rule == "share").count();
    assert_eq!(shares, 3, "each node's sum is said");
}

#[test]
fn twenty_eight_layers_are_halved_over_two_minis() {
    let facts = facts(&published::dense_of(3_400_000_000, 28));
    let load =
        Workload { rows: 1, context_tokens: 2_048, prefill_rows: 1, prefill_step_tokens: 256, on_gpu: true };
    let asked = Asked { wish: Wish::Only(Mode::Pipeline), load, ..AUTO };
    let answer = ask(&facts, &[mac(16, 0); 2], &asked);
    assert_eq!(spans(&answer), [[14, 14]]);
    let Choice::Gangs(gangs) = &answer.choice else { unreachable!() };
    for rank in &gangs[0].ranks {
        let gigabytes = rank.stage.need.weights() as f64 / 1e9;
        assert_eq!(format!("{gigabytes:.2}"), "1.70");
    }
}

#[test]
fn what_fits_one_mac_runs_whole_on_both() {
    for model in [
        published::gpt_oss_120b(),
        published::qwen_72b(FOUR_BITS),
        published::qwen_72b(EIGHT_BITS),
        published::qwen3_next(FOUR_BITS),
        published::qwen_7b(Stored::Bf16),
    ] {
        let facts = facts(&model);
        let answer = ask(&facts, &[mac(128, 0); 2], &Asked { rdma: true, ..AUTO });
        assert_eq!(independent_on(&answer), ["mac1", "mac2"]);
        assert_eq!(answer.reasons[0].rule, "fits-one-node");
        let other: Vec<&str> = answer
            .alternatives
            .iter()
            .filter(|other| !other.chosen)
            .map(|other| other.why.as_str())
            .collect();
        assert!(other[0].ends_with("that is 8 rows at work, not 16"), "{other:?}");
    }
    // One large and one small: only the large one.
    let facts = facts(&published::qwen_72b(FOUR_BITS));
    let answer = ask(&facts, &[mac(128, 0), mac(16, 0)], &AUTO);
    assert_eq!(independent_on(&answer), ["mac1"]);
    assert_eq!(answer.reasons[1].rule, "too-small");
}

#[test]
fn enough_nodes_make_several_gangs() {
    let facts = facts(&published::llama_405b(FOUR_BITS));
    let answer = ask(&facts, &[mac(192, 160); 4], &AUTO);
    assert_eq!(spans(&answer), [[63, 63], [63, 63]]);
}

#[test]
fn rdma_makes_a_mesh_or_a_ring_and_tensor_waits_for_a_measurement() {
    let facts = facts(&published::llama_405b(FOUR_BITS));
    let budgets = [mac(192, 160); 2];
    let rdma = Asked { rdma: true, ..AUTO };
    let answer = ask(&facts, &budgets, &rdma);
    let Choice::Gangs(gangs) = &answer.choice else { panic!("{answer:#?}") };
    assert_eq!((gangs[0].mode, gangs[0].backend), (Mode::Pipeline, Backend::Jaccl));
    assert_eq!(gangs[0].ranks[1].rdma_devices, [Some("rdma_en0".to_owned()), None]);

    let speed =
        |mode, tokens_per_s| Measurement { mode, backend: Some(Backend::Jaccl), ranks: 2, tokens_per_s };
    let slightly = [speed(Mode::Pipeline, 100), speed(Mode::Tensor, 105)];
    let clearly = [speed(Mode::Pipeline, 100), speed(Mode::Tensor, 130)];
    let mode_with = |measurements, rdma| {
        let answer = ask(&facts, &budgets, &Asked { rdma, measurements, ..AUTO });
        let Choice::Gangs(gangs) = &answer.choice else { panic!("{answer:#?}") };
        (gangs[0].mode, answer.reasons[0].rule)
    };
    assert_eq!(mode_with(&slightly, true), (Mode::Pipeline, "too-big-for-one"));
    assert_eq!(mode_with(&clearly, true), (Mode::Tensor, "measured"));
    assert_eq!(mode_with(&clearly, false).0, Mode::Pipeline, "not without a mesh");
    let asked = Asked { wish: Wish::Only(Mode::Tensor), ..AUTO };
    let answer = ask(&facts, &budgets, &asked);
    let Choice::Gangs(gangs) = &answer.choice else { panic!("{answer:#?}") };
    assert_eq!((gangs[0].mode, gangs[0].backend), (Mode::Tensor, Backend::Ring), "a person may ask for it");
    // 24 gigabytes of tensor parts over three: heads do not divide.
    let three = ask(&facts, &[mac(128, 0); 3], &asked);
    let why = &three.alternatives[2].why;
    assert!(why.contains("do not divide by 3"), "{why}");
}

#[test]
fn nodes_that_cannot_talk_are_no_gang() {
    let facts = facts(&published::llama_405b(FOUR_BITS));
    let candidates = candidates(&[mac(192, 160); 3]);
    let all = cabled(&candidates, false);
    let question = |links| Question {
        facts: &facts,
        load: LOAD,
        wish: Wish::Auto,
        candidates: &candidates,
        links,
        measurements: &[],
        most_gangs: 1,
    };
    let Choice::Refused { .. } = choose(&question(&[])).choice else { panic!("no link, no gang") };
    // Only the second and third are joined: they are the gang.
    let pair: Vec<Link> = all.into_iter().filter(|link| link.a.node == NodeId::from("mac2")).collect();
    let answer = choose(&question(&pair));
    let Choice::Gangs(gangs) = &answer.choice else { panic!("{answer:#?}") };
    let nodes: Vec<&str> = gangs[0].ranks.iter().map(|rank| rank.node.as_str()).collect();
    assert_eq!(nodes, ["mac2", "mac3"]);
    assert_eq!(gangs[0].ranks[0].ring_address, Some([10, 0, 12, 1].into()));
    assert_eq!(gangs[0].ranks[1].control_address, Some([10, 0, 12, 1].into()));
}
