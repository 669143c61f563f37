//! What holds for every model and every set of nodes.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const STEP: Workload =
    Workload { rows: 4, context_tokens: 2_048, prefill_rows: 4, prefill_step_tokens: 512, on_gpu: false };

fn tensor(name: &str, bytes: u64) -> Tensor {
    Tensor { name: name.to_owned(), dtype: Dtype::Bf16, bytes }
}

/// A llama of so many layers, each of so many bytes, with embeddings and head of the same size.
fn llama(layers: &[u64], ends_bytes: u64) -> ModelFacts {
    let mut tensors: Vec<Tensor> = layers
        .iter()
        .enumerate()
        .map(|(index, bytes)| tensor(&format!("model.layers.{index}.mlp.up_proj.weight"), *bytes))
        .collect();
    tensors.push(tensor("model.embed_tokens.weight", ends_bytes));
    tensors.push(tensor("lm_head.weight", ends_bytes));
    let config = json!({
        "model_type": "llama", "num_hidden_layers": layers.len(), "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
    });
    ModelFacts::new(&ModelFiles { config, tensors }).unwrap()
}

fn lengths(stages: &[Stage]) -> Vec<u32> {
    stages.iter().map(|stage| stage.span.len()).collect()
}

#[test]
fn equal_nodes_get_equal_spans_and_uneven_ones_get_theirs() {
    let model = llama(&[100 << 20; 28], 300 << 20);
    let on = |budgets: &[u64]| lengths(&split(&model, &STEP, budgets).unwrap());
    assert_eq!(on(&[8 << 30, 8 << 30]), [14, 14]);
    assert_eq!(on(&[8 << 30, 8 << 30, 8 << 30]), [9, 10, 9], "the ends carry embeddings and head");
    let uneven = on(&[8 << 30, 24 << 30]);
    assert_eq!(uneven, [5, 23], "the small one carries the embeddings as well");
    assert_eq!(split(&model, &STEP, &[1 << 30; 29]), None, "more nodes than layers");
    assert_eq!(split(&model, &STEP, &[]), None);
    assert_eq!(split(&model, &STEP, &[1 << 30, 0]), None);
}

#[test]
fn caches_are_counted_as_they_are_allocated() {
    let grows = Cache::Grows { bytes_per_token: 10 };
    assert_eq!(grows.row_bytes(1, 512), 2_560);
    assert_eq!(grows.row_bytes(256, 512), 2_560);
    assert_eq!(grows.row_bytes(257, 512), 5_120);
    let window = Cache::Window { bytes_per_token: 10, window_tokens: 128 };
    assert_eq!(window.row_bytes(10_000, 512), 6_400, "the window and the piece of the prompt being read");
    assert_eq!(window.row_bytes(100, 512), 2_560);
    assert_eq!(Cache::Fixed { bytes: 77 }.row_bytes(10_000, 512), 77);
}

#[test]
fn a_matrix_for_both_ends_is_counted_where_it_is() {
    let mut model = llama(&[1 << 20; 4], 1 << 30);
    model.tied = true;
    model.head_bytes = 0;
    let one = model.alone(&STEP, 0).need;
    assert_eq!((one.embeddings, one.head), (1 << 30, 0));
    let two = split(&model, &STEP, &[4 << 30, 4 << 30]).unwrap();
    assert_eq!((two[0].need.embeddings, two[1].need.head), (1 << 30, 1 << 30));
}

#[test]
fn unknown_architectures_are_bounded_from_above_and_said_to_be() {
    let known = llama(&[1 << 20; 2], 1 << 20);
    assert!(known.cache_is_exact && known.notes.is_empty());
    let mut files = ModelFiles {
        config: json!({
            "model_type": "brand_new", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16,
        }),
        tensors: vec![tensor("model.layers.0.mixer.x", 10), tensor("model.layers.1.mixer.x", 10)],
    };
    let unknown = ModelFacts::new(&files).unwrap();
    assert!(!unknown.cache_is_exact);
    assert_eq!(unknown.weight_bytes(), 20, "weights are exact all the same");
    assert_eq!(unknown.layers[0].cache, Cache::Grows { bytes_per_token: 2 * 64 * 2 });
    assert_eq!(
        unknown.notes,
        [
            "the cache of architecture \"brand_new\" is not known: it is bounded from above, as if every head of every layer \
          kept every token"
        ]
    );
    files.config = json!({});
    assert!(!ModelFacts::new(&files).unwrap().cache_is_exact, "nothing known, and no panic");
}

#[test]
fn an_incomplete_model_is_no_model() {
    let mut files =
        ModelFiles { config: json!({"model_type": "llama", "num_hidden_layers": 3}), tensors: vec![] };
    assert_eq!(ModelFacts::new(&files).unwrap_err(), "the model has no safetensors files");
    files.tensors = vec![tensor("lm_head.weight", 1)];
    assert_eq!(
        ModelFacts::new(&files).unwrap_err(),
        "none of the model's 1 tensors belongs to a numbered layer"
    );
    files.tensors.push(tensor("model.layers.0.mlp.up_proj.weight", 1));
    assert_eq!(
        ModelFacts::new(&files).unwrap_err(),
        "config.json says 3 layers, but the files hold only 1: is the model complete?"
    );
}

#[test]
fn eight_bit_floats_count_as_what_they_become() {
    let mut files = ModelFiles {
        config: json!({"model_type": "deepseek_v3", "num_hidden_layers": 1, "kv_lora_rank": 512, "qk_rope_head_dim": 64}),
        tensors: vec![
            Tensor {
                name: "model.layers.0.mlp.up_proj.weight".to_owned(),
                dtype: Dtype::F8,
                bytes: 1_000_000_000,
            },
            Tensor {
                name: "model.layers.0.mlp.up_proj.weight_scale_inv".to_owned(),
                dtype: Dtype::F32,
                bytes: 9,
            },
        ],
    };
    let facts = ModelFacts::new(&files).unwrap();
    assert_eq!((facts.weight_bytes(), facts.not_loaded_bytes), (2_000_000_000, 9));
    assert_eq!(facts.layers[0].cache, Cache::Grows { bytes_per_token: 576 * 2 });
    assert!(facts.notes[0].starts_with("1.0 GB of 8-bit floating point weights"), "{:?}", facts.notes);
    files.config["model_type"] = json!("deepseek_v32");
    files.config["index_head_dim"] = json!(128);
    let indexed = ModelFacts::new(&files).unwrap();
    assert_eq!(indexed.layers[0].cache, Cache::Grows { bytes_per_token: (576 + 256) * 2 });
}

#[test]
fn refusals_say_what_would_help() {
    let model = llama(&[1 << 30; 16], 1 << 30);
    let load = Workload { rows: 64, context_tokens: 65_536, ..STEP };
    let helps = advice(&model, &load, &[12 << 30, 12 << 30]);
    assert!(matches!(helps[0], Advice::FewerRows { rows: 1.. }), "{helps:?}");
    assert!(matches!(helps[1], Advice::ShorterContext { tokens: 256.. }), "{helps:?}");
    assert!(helps.iter().any(|help| matches!(help, Advice::MoreNodes { nodes: 1.., .. })), "{helps:?}");
    let small = advice(&model, &STEP, &[4 << 30, 4 << 30]);
    assert_eq!(small, [Advice::FewerBits { bits: 6 }, Advice::MoreNodes { nodes: 4, budget_bytes: 4 << 30 }]);
    assert_eq!(advice(&model, &STEP, &[12 << 30, 12 << 30]), vec![], "it fits");
}

#[test]
fn tensor_runs_need_shapes_that_divide() {
    let mut model = llama(&[1 << 20; 2], 1 << 20);
    assert_eq!(tensor_obstacle(&model, 2), None);
    assert_eq!(tensor_obstacle(&model, 3).unwrap(), "its 4 attention heads do not divide by 3");
    assert_eq!(tensor_obstacle(&model, 4).unwrap(), "its 2 key heads do not divide by 4");
    model.quantization_group = 128;
    assert_eq!(
        tensor_obstacle(&model, 2).unwrap(),
        "its inner size of 128 does not divide by 2 into whole quantisation groups of 128"
    );
    model.architecture = "gemma3_text".to_owned();
    assert_eq!(
        tensor_obstacle(&model, 2).unwrap(),
        "mlx-lm cannot divide architecture \"gemma3_text\" tensor-wise"
    );
}

fn models() -> impl Strategy<Value = ModelFacts> {
    (prop::collection::vec(1_u64..4_000_000_000, 1..60), 0_u64..4_000_000_000)
        .prop_map(|(layers, ends)| llama(&layers, ends))
}

fn loads() -> impl Strategy<Value = Workload> {
    (1_u64..64, 1_u64..200_000, 1_u64..16, 1_u64..4_096).prop_map(
        |(rows, context_tokens, prefill_rows, prefill_step_tokens)| Workload {
            rows,
            context_tokens,
            prefill_rows,
            prefill_step_tokens,
            on_gpu: rows % 2 == 0,
        },
    )
}

proptest! {
    #[test]
    fn spans_cover_every_layer_once_and_needs_add_up(
        model in models(), load in loads(), budgets in prop::collection::vec(1_u64..200_000_000_000, 1..9),
    ) {
        let Some(stages) = split(&model, &load, &budgets) else {
            // Only for the reasons there are.
            let smallest_share = budgets.iter().any(|budget| *budget < 1 << 30);
            prop_assert!(budgets.len() > model.layers.len() || smallest_share);
            return Ok(());
        };
        prop_assert_eq!(stages.len(), budgets.len());
        let mut next = 0;
        for stage in &stages {
            prop_assert_eq!(stage.span.first, next);
            prop_assert!(!stage.span.is_empty());
            next = stage.span.end;
        }
        prop_assert_eq!(next as usize, model.layers.len());
        let weights: u64 = stages.iter().map(|stage| stage.need.weights()).sum();
        prop_assert_eq!(weights, model.weight_bytes());
        prop_assert_eq!(split(&model, &load, &budgets), Some(stages));
    }

    #[test]
    fn more_memory_never_turns_fits_into_refused(
        model in models(), load in loads(),
        budgets in prop::collection::vec(1_u64..200_000_000_000, 1..6), which in 0_usize..6, more in 0_u64..100_000_000_000,
    ) {
        let fits = |budgets: &[u64]| split(&model, &load, budgets).is_some_and(|stages| verdict(&stages).fits());
        let mut grown = budgets.clone();
        let which = which % budgets.len();
        grown[which] += more;
        prop_assert!(!fits(&budgets) || fits(&grown));
    }

    #[test]
    fn whatever_fits_somehow_is_found(
        layers in prop::collection::vec(1_u64..100, 2..9), load in loads(), budgets in prop::collection::vec(1_u64..400, 2..4),
    ) {
        // Sizes of 16 MiB, so that what a node needs besides its layers is of their order.
        let layers: Vec<u64> = layers.into_iter().map(|size| size << 24).collect();
        let budgets: Vec<u64> = budgets.into_iter().map(|size| size << 24).collect();
        let model = llama(&layers, 1 << 24);
        let found = split(&model, &load, &budgets).is_some_and(|stages| verdict(&stages).fits());
        prop_assert_eq!(found, any_split_fits(&model, &load, &budgets, 0));
        prop_assert!(!found || Floor::new(&model, &load).may_hold(&budgets), "the floor is below every split");
    }

    #[test]
    fn the_largest_loads_fit_and_one_more_does_not(model in models(), load in loads(), budget in 1_u64..400_000_000_000) {
        let fits = |load: &Workload| verdict(&[model.alone(load, budget)]).fits();
        let with_rows = |rows| fits(&Workload { rows, ..load });
        let rows = largest_rows(&load, fits);
        prop_assert!(rows == 0 || with_rows(rows));
        prop_assert!(rows == 4_096 || !with_rows(rows + 1));
        let with_context = |context_tokens| fits(&Workload { context_tokens, ..load });
        let tokens = largest_context(&load, None, fits);
        prop_assert!(tokens == 0 || with_context(tokens));
        prop_assert!(tokens == 1 << 20 || !with_context(tokens + 256));
    }

    #[test]
    fn no_configuration_makes_it_panic(
        number in 0_u64..u64::MAX, kind in prop::sample::select(vec!["llama", "gpt_oss", "deepseek_v3", "qwen3_next", "x"]),
        keys in prop::collection::vec(prop::sample::select(vec![
            "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "kv_lora_rank",
            "qk_rope_head_dim", "sliding_window", "linear_num_key_heads", "linear_key_head_dim", "vocab_size",
            "linear_num_value_heads", "linear_value_head_dim", "linear_conv_kernel_dim", "full_attention_interval",
            "max_position_embeddings", "num_experts_per_tok", "moe_intermediate_size",
        ]), 0..18),
        name in "[a-z.]{0,6}(layers|h|blocks)?\\.?[0-9]{0,12}\\.?[a-z_.]{0,20}",
    ) {
        let mut config = json!({"model_type": kind});
        for key in keys {
            config[key] = json!(number);
        }
        let files = ModelFiles { config, tensors: vec![tensor(&name, number / 4), tensor("model.layers.0.mlp.w", 1)] };
        if let Ok(facts) = ModelFacts::new(&files) {
            let _ = advice(&facts, &STEP, &[number / 2, 1]);
        }
    }
}

/// Tries every split there is.
fn any_split_fits(model: &ModelFacts, load: &Workload, budgets: &[u64], first: u32) -> bool {
    let count = u32::try_from(model.layers.len()).unwrap();
    let Some((budget, rest)) = budgets.split_first() else { return first == count };
    if rest.is_empty() {
        let span = Span { first, end: count };
        return first < count && need::span_need(model, span, load).total() <= *budget;
    }
    (first + 1..count).any(|end| {
        need::span_need(model, Span { first, end }, load).total() <= *budget
            && any_split_fits(model, load, rest, end)
    })
}
