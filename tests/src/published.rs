//! Published models as they lie on disk: their configurations and the tensors of their files, in true sizes.
//!
//! Shapes are those of the models' own `config.json`; names and quantised forms are those mlx-lm writes. A directory
//! written here has real headers over files with nothing in them: sparse, so a terabyte takes a few kilobytes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde_json::{Value, json};

/// Bytes of a shard, as converters cut them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    /// Two bytes a number.
    Bf16,
    /// Packed into 32-bit words, with a scale and a bias of two bytes for each group.
    Quantised {
        /// Bits a number.
        bits: u64,
        /// Numbers in a group.
        group: u64,
    },
}

/// mlx-lm's usual four bits.
pub const FOUR_BITS: Stored = Stored::Quantised { bits: 4, group: 64 };

/// mlx-lm's usual eight bits.
pub const EIGHT_BITS: Stored = Stored::Quantised { bits: 8, group: 64 };

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// As safetensors writes it.
    pub dtype: &'static str,
    /// Its dimensions.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// Its size in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let size = match self.dtype {
            "F32" | "U32" => 4,
            "U8" => 1,
            _ => 2,
        };
        self.shape.iter().product::<u64>() * size
    }
}

/// A model without its weights.
#[derive(Clone, Debug)]
pub struct Published {
    /// `config.json`.
    pub config: Value,
    /// All its tensors.
    pub tensors: Vec<Tensor>,
    stored: Stored,
}

impl Published {
    fn new(mut config: Value, stored: Stored) -> Self {
        config["torch_dtype"] = json!("bfloat16");
        if let Stored::Quantised { bits, group } = stored {
            config["quantization"] = json!({"bits": bits, "group_size": group});
        }
        Self { config, tensors: Vec::new(), stored }
    }

    /// All bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    fn number(&self, key: &str) -> u64 {
        self.config[key].as_u64().unwrap_or_else(|| panic!("the configuration has no {key}"))
    }

    fn plain(&mut self, name: &str, shape: &[u64]) {
        self.tensors.push(Tensor { name: name.to_owned(), dtype: "BF16", shape: shape.to_vec() });
    }

    /// A matrix as it is stored; the last dimension is the one that is packed.
    fn matrix(&mut self, name: &str, shape: &[u64]) {
        let Stored::Quantised { bits, group } = self.stored else {
            return self.plain(&format!("{name}.weight"), shape);
        };
        let with_last = |last: u64| {
            let mut shape = shape.to_vec();
            *shape.last_mut().expect("a matrix has dimensions") = last;
            shape
        };
        let columns = *shape.last().expect("a matrix has dimensions");
        self.tensors.push(Tensor {
            name: format!("{name}.weight"),
            dtype: "U32",
            shape: with_last(columns * bits / 32),
        });
        for part in ["scales", "biases"] {
            self.plain(&format!("{name}.{part}"), &with_last(columns / group));
        }
    }

    fn ends(&mut self) {
        let (vocab, hidden) = (self.number("vocab_size"), self.number("hidden_size"));
        self.matrix("model.embed_tokens", &[vocab, hidden]);
        self.plain("model.norm.weight", &[hidden]);
        if self.config["tie_word_embeddings"] != json!(true) {
            self.matrix("lm_head", &[vocab, hidden]);
        }
    }

    fn grouped_attention(&mut self, layer: &str, with_bias: bool) {
        let hidden = self.number("hidden_size");
        let head = self.config["head_dim"].as_u64().unwrap_or(hidden / self.number("num_attention_heads"));
        let (queries, keys) =
            (self.number("num_attention_heads") * head, self.number("num_key_value_heads") * head);
        for (name, rows) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            self.matrix(&format!("{layer}.self_attn.{name}"), &[rows, hidden]);
            if with_bias {
                self.plain(&format!("{layer}.self_attn.{name}.bias"), &[rows]);
            }
        }
        self.matrix(&format!("{layer}.self_attn.o_proj"), &[hidden, queries]);
    }

    fn latent_attention(&mut self, layer: &str) {
        let (hidden, heads) = (self.number("hidden_size"), self.number("num_attention_heads"));
        let (q_rank, kv_rank) = (self.number("q_lora_rank"), self.number("kv_lora_rank"));
        let (nope, rope) = (self.number("qk_nope_head_dim"), self.number("qk_rope_head_dim"));
        let values = self.number("v_head_dim");
        let at = format!("{layer}.self_attn");
        self.matrix(&format!("{at}.q_a_proj"), &[q_rank, hidden]);
        self.plain(&format!("{at}.q_a_layernorm.weight"), &[q_rank]);
        self.matrix(&format!("{at}.q_b_proj"), &[heads * (nope + rope), q_rank]);
        self.matrix(&format!("{at}.kv_a_proj_with_mqa"), &[kv_rank + rope, hidden]);
        self.plain(&format!("{at}.kv_a_layernorm.weight"), &[kv_rank]);
        self.matrix(&format!("{at}.embed_q"), &[heads, kv_rank, nope]);
        self.matrix(&format!("{at}.unembed_out"), &[heads, values, kv_rank]);
        self.matrix(&format!("{at}.o_proj"), &[hidden, heads * values]);
    }

    fn norms(&mut self, layer: &str) {
        let hidden = self.number("hidden_size");
        self.plain(&format!("{layer}.input_layernorm.weight"), &[hidden]);
        self.plain(&format!("{layer}.post_attention_layernorm.weight"), &[hidden]);
    }

    fn mlp(&mut self, name: &str, inner: u64) {
        let hidden = self.number("hidden_size");
        self.matrix(&format!("{name}.gate_proj"), &[inner, hidden]);
        self.matrix(&format!("{name}.up_proj"), &[inner, hidden]);
        self.matrix(&format!("{name}.down_proj"), &[hidden, inner]);
    }

    fn experts(&mut self, layer: &str, experts: u64, inner: u64) {
        let hidden = self.number("hidden_size");
        self.plain(&format!("{layer}.mlp.gate.weight"), &[experts, hidden]);
        let at = format!("{layer}.mlp.switch_mlp");
        self.matrix(&format!("{at}.gate_proj"), &[experts, inner, hidden]);
        self.matrix(&format!("{at}.up_proj"), &[experts, inner, hidden]);
        self.matrix(&format!("{at}.down_proj"), &[experts, hidden, inner]);
    }

    fn each_layer(mut self, build: impl Fn(&mut Self, u64, &str)) -> Self {
        for index in 0..self.number("num_hidden_layers") {
            let layer = format!("model.layers.{index}");
            build(&mut self, index, &layer);
            self.norms(&layer);
        }
        self.ends();
        self
    }

    /// Writes the directory, its weights sparse.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("config.json"), self.config.to_string())?;
        let mut shards: Vec<Vec<&Tensor>> = vec![Vec::new()];
        let mut size = 0;
        for tensor in &self.tensors {
            if size > 0 && size + tensor.bytes() > SHARD_BYTES {
                shards.push(Vec::new());
                size = 0;
            }
            size += tensor.bytes();
            shards.last_mut().expect("there is one").push(tensor);
        }
        let count = shards.len();
        let mut weight_map = serde_json::Map::new();
        for (index, shard) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
            let mut header = serde_json::Map::new();
            header.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
            let mut offset = 0;
            for tensor in shard {
                let end = offset + tensor.bytes();
                header.insert(
                    tensor.name.clone(),
                    json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}),
                );
                offset = end;
                weight_map.insert(tensor.name.clone(), json!(name));
            }
            let header = Value::Object(header).to_string();
            let mut file = File::create(directory.join(&name))?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            file.set_len(8 + header.len() as u64 + offset)?;
        }
        let map = json!({"metadata": {"total_size": self.bytes()}, "weight_map": weight_map});
        fs::write(directory.join("model.safetensors.index.json"), map.to_string())
    }
}

/// Llama 3.1 405B: 126 dense layers, grouped queries.
#[must_use]
pub fn llama_405b(stored: Stored) -> Published {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16_384,
        "intermediate_size": 53_248, "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    dense(config, stored, false)
}

/// Qwen2.5 72B: 80 dense layers, biases in attention.
#[must_use]
pub fn qwen_72b(stored: Stored) -> Published {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8_192, "intermediate_size": 29_568,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152_064,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    });
    dense(config, stored, true)
}

/// Qwen2.5 7B: 28 layers.
#[must_use]
pub fn qwen_7b(stored: Stored) -> Published {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3_584, "intermediate_size": 18_944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    });
    dense(config, stored, true)
}

fn dense(config: Value, stored: Stored, with_bias: bool) -> Published {
    Published::new(config, stored).each_layer(|model, _, layer| {
        let inner = model.number("intermediate_size");
        model.grouped_attention(layer, with_bias);
        model.mlp(&format!("{layer}.mlp"), inner);
    })
}

/// Qwen3 235B A22B: 94 layers of 128 experts.
#[must_use]
pub fn qwen3_235b(stored: Stored) -> Published {
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 4_096,
        "intermediate_size": 12_288, "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1_536,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": true, "vocab_size": 151_936,
        "max_position_embeddings": 40_960, "tie_word_embeddings": false,
    });
    Published::new(config, stored).each_layer(|model, _, layer| {
        model.grouped_attention(layer, false);
        model.plain(&format!("{layer}.self_attn.q_norm.weight"), &[128]);
        model.plain(&format!("{layer}.self_attn.k_norm.weight"), &[128]);
        model.experts(layer, 128, 1_536);
    })
}

fn deepseek(
    heads: u64,
    experts: u64,
    dense_layers: u64,
    vocab: u64,
    kind: &str,
    stored: Stored,
) -> Published {
    let config = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": kind, "hidden_size": 7_168,
        "intermediate_size": 18_432, "moe_intermediate_size": 2_048, "num_hidden_layers": 61,
        "num_attention_heads": heads, "num_key_value_heads": heads, "q_lora_rank": 1_536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": experts,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": dense_layers,
        "num_nextn_predict_layers": 1, "vocab_size": vocab, "max_position_embeddings": 163_840,
        "tie_word_embeddings": false,
    });
    Published::new(config, stored).each_layer(|model, index, layer| {
        model.latent_attention(layer);
        if index < dense_layers {
            model.mlp(&format!("{layer}.mlp"), 18_432);
        } else {
            model.experts(layer, experts, 2_048);
            model.plain(&format!("{layer}.mlp.gate.e_score_correction_bias"), &[experts]);
            model.mlp(&format!("{layer}.mlp.shared_experts"), 2_048);
        }
    })
}

/// DeepSeek V3 and R1: latent attention, 256 experts.
#[must_use]
pub fn deepseek_v3(stored: Stored) -> Published {
    deepseek(128, 256, 3, 129_280, "deepseek_v3", stored)
}

/// Kimi K2: a trillion parameters, 384 experts.
#[must_use]
pub fn kimi_k2(stored: Stored) -> Published {
    deepseek(64, 384, 1, 163_840, "kimi_k2", stored)
}

/// gpt-oss 120B: experts in four-bit floating point, every other layer with a window of 128 tokens.
#[must_use]
pub fn gpt_oss_120b() -> Published {
    let types: Vec<&str> = (0..36).map(|index| ["sliding_attention", "full_attention"][index % 2]).collect();
    let config = json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2_880,
        "intermediate_size": 2_880, "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128, "layer_types": types,
        "vocab_size": 201_088, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        "quantization_config": {"quant_method": "mxfp4"},
    });
    Published::new(config, Stored::Bf16).each_layer(|model, _, layer| {
        model.grouped_attention(layer, true);
        model.plain(&format!("{layer}.self_attn.o_proj.bias"), &[2_880]);
        model.plain(&format!("{layer}.self_attn.sinks"), &[64]);
        model.plain(&format!("{layer}.mlp.router.weight"), &[128, 2_880]);
        model.plain(&format!("{layer}.mlp.router.bias"), &[128]);
        for (part, rows) in [("gate_up_proj", 5_760), ("down_proj", 2_880)] {
            let at = format!("{layer}.mlp.experts.{part}");
            let bytes = |name: String, shape: &[u64]| Tensor { name, dtype: "U8", shape: shape.to_vec() };
            model.tensors.push(bytes(format!("{at}_blocks"), &[128, rows, 90, 16]));
            model.tensors.push(bytes(format!("{at}_scales"), &[128, rows, 90]));
            model.plain(&format!("{at}_bias"), &[128, rows]);
        }
    })
}

/// GLM 4.5: 92 layers of 160 experts, and one layer more that predicts a second token and is never loaded.
#[must_use]
pub fn glm_45(stored: Stored) -> Published {
    let config = json!({
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "hidden_size": 5_120,
        "intermediate_size": 12_288, "moe_intermediate_size": 1_536, "num_hidden_layers": 92,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 160,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1,
        "vocab_size": 151_552, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
    });
    let mut model = Published::new(config, stored).each_layer(|model, index, layer| {
        model.grouped_attention(layer, true);
        if index < 3 {
            model.mlp(&format!("{layer}.mlp"), 12_288);
        } else {
            model.experts(layer, 160, 1_536);
            model.mlp(&format!("{layer}.mlp.shared_experts"), 1_536);
        }
    });
    model.experts("model.layers.92", 160, 1_536);
    model
}

/// Qwen3-Next 80B A3B: three layers of linear attention to one of full attention, 512 experts.
#[must_use]
pub fn qwen3_next(stored: Stored) -> Published {
    let config = json!({
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "hidden_size": 2_048,
        "intermediate_size": 5_120, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4, "vocab_size": 151_936, "max_position_embeddings": 262_144,
        "tie_word_embeddings": false,
    });
    Published::new(config, stored).each_layer(|model, index, layer| {
        if index % 4 == 3 {
            model.matrix(&format!("{layer}.self_attn.q_proj"), &[2 * 16 * 256, 2_048]);
            model.matrix(&format!("{layer}.self_attn.k_proj"), &[2 * 256, 2_048]);
            model.matrix(&format!("{layer}.self_attn.v_proj"), &[2 * 256, 2_048]);
            model.matrix(&format!("{layer}.self_attn.o_proj"), &[2_048, 16 * 256]);
        } else {
            let at = format!("{layer}.linear_attn");
            model.matrix(&format!("{at}.in_proj_qkvz"), &[2 * 16 * 128 + 2 * 32 * 128, 2_048]);
            model.matrix(&format!("{at}.in_proj_ba"), &[64, 2_048]);
            model.plain(&format!("{at}.conv1d.weight"), &[2 * 16 * 128 + 32 * 128, 4, 1]);
            model.plain(&format!("{at}.A_log"), &[32]);
            model.plain(&format!("{at}.dt_bias"), &[32]);
            model.plain(&format!("{at}.norm.weight"), &[128]);
            model.matrix(&format!("{at}.out_proj"), &[2_048, 32 * 128]);
        }
        model.experts(layer, 512, 512);
        model.mlp(&format!("{layer}.mlp.shared_expert"), 512);
        model.plain(&format!("{layer}.mlp.shared_expert_gate.weight"), &[1, 2_048]);
    })
}

/// A dense model of this many layers whose tensors weigh this much together, to the last few thousand bytes; embeddings
/// and head are a twentieth each.
#[must_use]
pub fn dense_of(bytes: u64, layers: u64) -> Published {
    let hidden = 4_096;
    let vocab = bytes / 20 / (2 * hidden);
    let per_layer = (bytes - 2 * vocab * hidden * 2) / layers / 2;
    let attention = 2 * (32 * 128 * hidden) + 2 * (8 * 128 * hidden) + 2 * hidden;
    let inner = per_layer.saturating_sub(attention) / (3 * hidden);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": vocab, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
    });
    dense(config, Stored::Bf16, false)
}
