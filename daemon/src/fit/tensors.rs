//! What the headers of a model's files say, and what each tensor is for.

use serde_json::Value;

use super::dtype::Dtype;

/// One tensor, as the header of its safetensors file describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    /// Its full name.
    pub name: String,
    /// What its numbers are.
    pub dtype: Dtype,
    /// Bytes in the file.
    pub bytes: u64,
}

/// A model directory without its weights.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ModelFiles {
    /// `config.json`.
    pub config: Value,
    /// Every tensor of every file.
    pub tensors: Vec<Tensor>,
}

/// Where a tensor's bytes end up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Layer {
        index: u32,
        part: Part,
        divided: bool,
    },
    Embeddings,
    Head,
    FinalNorm,
    /// Loaded, but none of the above.
    Elsewhere,
    /// In the files, never in memory: encoders of other media, layers for multi-token prediction, scales of numbers
    /// that are converted when they are loaded.
    NotLoaded,
}

/// The part of a layer a tensor belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Attention,
    Mlp,
    Experts,
    Router,
    Norm,
    Other,
}

/// What mlx-lm's `sanitize` of text models drops.
const OTHER_MEDIA: [&str; 10] = [
    "vision_tower",
    "vision_model",
    "visual.",
    "multi_modal_projector",
    "mm_projector",
    "audio_tower",
    "embed_audio",
    "embed_vision",
    "patch_merge_mlp",
    "vision_embed",
];

/// Where a layer's number follows.
const LAYER_LISTS: [&str; 4] = ["layers.", "blocks.", "h.", "block."];

/// Parts of attention that every rank of a tensor-parallel run needs whole: the low-rank inputs of MLA, the indexer of
/// sparse attention, and one number a head (mlx-lm's `shard` leaves or slices them; they are small).
const UNDIVIDED_ATTENTION: [&str; 5] =
    ["q_a_proj", "kv_a_proj", "q_a_layernorm", "kv_a_layernorm", "indexer"];

/// Places a tensor by its name. `layer_count` is the configuration's: what lies past it predicts further tokens and is
/// not loaded.
pub(super) fn place(name: &str, layer_count: Option<u32>) -> Place {
    if OTHER_MEDIA.iter().any(|part| name.contains(part))
        || name.starts_with("mtp.")
        || name.contains(".mtp.")
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with("weight_scale_inv")
        || name.ends_with("weight_shape")
    {
        return Place::NotLoaded;
    }
    if let Some((index, rest)) = layer_of(name) {
        if layer_count.is_some_and(|count| index >= count) {
            return Place::NotLoaded;
        }
        let part = part_of(rest);
        let divided = match part {
            Part::Attention => !UNDIVIDED_ATTENTION.iter().any(|whole| rest.contains(whole)),
            Part::Mlp | Part::Experts => true,
            Part::Router | Part::Norm | Part::Other => false,
        };
        return Place::Layer { index, part, divided };
    }
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if has(&["embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embedding.weight", "embeddings."]) {
        Place::Embeddings
    } else if has(&["lm_head", "embed_out"]) || name.starts_with("output.") || name.starts_with("head.") {
        Place::Head
    } else if has(&["norm", "ln_f"]) {
        Place::FinalNorm
    } else {
        Place::Elsewhere
    }
}

/// The layer's number and what follows it in the name.
fn layer_of(name: &str) -> Option<(u32, &str)> {
    for list in LAYER_LISTS {
        let mut from = 0;
        while let Some(found) = name[from..].find(list) {
            let at = from + found;
            let rest = &name[at + list.len()..];
            let starts_a_part = at == 0 || name.as_bytes()[at - 1] == b'.';
            if starts_a_part
                && let Some((number, rest)) = rest.split_once('.')
                && let Ok(index) = number.parse()
            {
                return Some((index, rest));
            }
            from = at + list.len();
        }
    }
    None
}

/// By the names that mlx-lm and the published checkpoints use. The order matters: a shared expert is no routed one, and
/// the norms inside attention are norms.
fn part_of(rest: &str) -> Part {
    let has = |parts: &[&str]| parts.iter().any(|part| rest.contains(part));
    if rest.contains("norm") && !has(&["q_a_layernorm", "kv_a_layernorm"]) {
        Part::Norm
    } else if has(&["shared_expert_gate", "router", ".gate.", "e_score_correction_bias"]) {
        Part::Router
    } else if has(&["shared_expert", "shared_mlp"]) {
        Part::Mlp
    } else if has(&["experts", "switch_mlp", "switch_glu"]) {
        Part::Experts
    } else if has(&["attn", "attention", "mixer", "mamba", "conv."]) {
        Part::Attention
    } else if has(&["mlp", "feed_forward", "ffn"]) {
        Part::Mlp
    } else {
        Part::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(index: u32, part: Part, divided: bool) -> Place {
        Place::Layer { index, part, divided }
    }

    #[test]
    fn tensors_are_placed_by_their_published_names() {
        let cases = [
            ("model.layers.3.self_attn.q_proj.weight", layer(3, Part::Attention, true)),
            ("model.layers.3.self_attn.q_norm.weight", layer(3, Part::Norm, false)),
            ("model.layers.0.self_attn.kv_a_proj_with_mqa.scales", layer(0, Part::Attention, false)),
            ("model.layers.0.self_attn.kv_b_proj.weight", layer(0, Part::Attention, true)),
            ("model.layers.9.mlp.gate.weight", layer(9, Part::Router, false)),
            ("model.layers.9.mlp.gate.e_score_correction_bias", layer(9, Part::Router, false)),
            ("model.layers.9.mlp.gate_proj.weight", layer(9, Part::Mlp, true)),
            ("model.layers.9.mlp.shared_experts.up_proj.weight", layer(9, Part::Mlp, true)),
            ("model.layers.9.mlp.shared_expert_gate.weight", layer(9, Part::Router, false)),
            ("model.layers.9.mlp.experts.117.down_proj.weight", layer(9, Part::Experts, true)),
            ("model.layers.9.mlp.switch_mlp.down_proj.biases", layer(9, Part::Experts, true)),
            ("model.layers.9.mlp.experts.gate_up_proj_blocks", layer(9, Part::Experts, true)),
            ("model.layers.9.mlp.router.bias", layer(9, Part::Router, false)),
            ("model.layers.9.linear_attn.conv1d.weight", layer(9, Part::Attention, true)),
            ("model.layers.9.input_layernorm.weight", layer(9, Part::Norm, false)),
            ("model.layers.92.mlp.up_proj.weight", Place::NotLoaded),
            ("language_model.model.layers.1.self_attn.o_proj.weight", layer(1, Part::Attention, true)),
            ("vision_tower.blocks.0.attn.qkv.weight", Place::NotLoaded),
            ("model.layers.1.self_attn.q_proj.weight_scale_inv", Place::NotLoaded),
            ("mtp.layers.0.mlp.up_proj.weight", Place::NotLoaded),
            ("transformer.h.4.attn.c_attn.weight", layer(4, Part::Attention, true)),
            ("model.embed_tokens.scales", Place::Embeddings),
            ("lm_head.weight", Place::Head),
            ("model.norm.weight", Place::FinalNorm),
            ("something.of.its.own", Place::Elsewhere),
        ];
        for (name, expected) in cases {
            assert_eq!(place(name, Some(92)), expected, "{name}");
        }
    }
}
