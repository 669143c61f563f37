//! A model in numbers: what its layers weigh and what their caches cost.

use super::{
    cache::{self, Cache, Config},
    dtype::Dtype,
    tensors::{ModelFiles, Part, Place, place},
};

/// Architectures with sinks in mlx-lm 0.32.2.
const WITH_SINKS: [&str; 2] = ["gpt_oss", "mimo_v2_flash"];

/// What a layer's weights are for, in bytes of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weights {
    /// Attention of every kind, convolutions and state spaces with it.
    pub attention: u64,
    /// Dense feed-forward parts, shared experts included.
    pub mlp: u64,
    /// Routed experts.
    pub experts: u64,
    /// What chooses among them.
    pub router: u64,
    /// Norms.
    pub norms: u64,
    /// Anything else.
    pub other: u64,
    /// Of all these, what a tensor-parallel run divides among its ranks.
    pub divided: u64,
}

impl Weights {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.attention + self.mlp + self.experts + self.router + self.norms + self.other
    }
}

/// One layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerFacts {
    /// Its weights.
    pub weights: Weights,
    /// What it keeps of each row.
    pub cache: Cache,
}

/// A model, as far as memory goes.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelFacts {
    /// `model_type`; empty where the configuration does not say.
    pub architecture: String,
    /// In order.
    pub layers: Vec<LayerFacts>,
    /// The matrix that turns tokens into vectors.
    pub embeddings_bytes: u64,
    /// The matrix that turns vectors into logits; 0 when it is the same one.
    pub head_bytes: u64,
    /// Embeddings and head are one matrix.
    pub tied: bool,
    /// The norm before the head.
    pub final_norm_bytes: u64,
    /// Weights with a name that tells nothing: counted on every node.
    pub elsewhere_bytes: u64,
    /// In the files, never in memory.
    pub not_loaded_bytes: u64,
    /// Whether the caches are knowledge; otherwise they are a bound from above.
    pub cache_is_exact: bool,
    /// Bytes of one number of the activations.
    pub number_bytes: u64,
    /// Length of the vectors between layers.
    pub hidden_size: u64,
    /// Rows of the embeddings.
    pub vocab_size: u64,
    /// Inner width of a dense feed-forward part; 0 where there is none.
    pub intermediate_size: u64,
    /// Inner width of all shared experts together.
    pub shared_intermediate_size: u64,
    /// Inner width of one routed expert.
    pub expert_intermediate_size: u64,
    /// Routed experts that a token goes to.
    pub active_experts: u64,
    /// Query heads.
    pub heads: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Length of a head's queries and keys.
    pub query_dim: u64,
    /// Length of a head's values.
    pub value_dim: u64,
    /// Latent attention: keys are not heads.
    pub latent_attention: bool,
    /// Attention may look at nothing: each head has a sink.
    pub has_sinks: bool,
    /// Inner sizes that a tensor-parallel run divides.
    pub divisible_sizes: Vec<u64>,
    /// Bits a weight, as the configuration says or as it is stored.
    pub weight_bits: u64,
    /// Numbers that share one scale; divided sizes must be multiples of it. 1 when not quantised.
    pub quantization_group: u64,
    /// How many positions the model was made for.
    pub context_tokens: Option<u64>,
    /// What a reader of the sums should know.
    pub notes: Vec<String>,
}

impl ModelFacts {
    /// Adds it all up.
    ///
    /// # Errors
    /// A sentence, when there is nothing to add up.
    pub fn new(files: &ModelFiles) -> Result<Self, String> {
        let config = Config::new(&files.config);
        let stated_layers = ["num_hidden_layers", "n_layers", "num_layers", "n_layer"]
            .iter()
            .find_map(|key| config.number(key))
            .and_then(|count| u32::try_from(count).ok());
        let mut sums = Sums::default();
        for tensor in &files.tensors {
            sums.add(tensor, stated_layers);
        }
        if sums.layers.is_empty() {
            return Err(match files.tensors.len() {
                0 => "the model has no safetensors files".to_owned(),
                count => format!("none of the model's {count} tensors belongs to a numbered layer"),
            });
        }
        let mut notes = Vec::new();
        let found = u32::try_from(sums.layers.len()).unwrap_or(u32::MAX);
        if let Some(stated) = stated_layers.filter(|stated| *stated > found) {
            return Err(format!(
                "config.json says {stated} layers, but the files hold only {found}: is the model complete?"
            ));
        }
        let tied = config.flag("tie_word_embeddings") || sums.head == 0;
        if tied && sums.head > 0 {
            // mlx-lm drops the second copy.
            sums.not_loaded += sums.head;
            sums.head = 0;
        }
        if sums.widened > 0 {
            notes.push(format!(
                "{} of 8-bit floating point weights become twice that: mlx-lm turns them into bf16",
                gigabytes(sums.widened)
            ));
        }
        let number_bytes = sums.number_bytes(&config);
        let caches = cache::caches(&config, found, number_bytes);
        let cache_is_exact = caches.bound.is_none();
        notes.extend(caches.bound);
        let layers = sums
            .layers
            .iter()
            .zip(caches.layers)
            .map(|(weights, cache)| LayerFacts { weights: *weights, cache })
            .collect();
        let quantization = config.whole("quantization").or_else(|| config.whole("quantization_config"));
        let quantized =
            |key: &str| quantization.and_then(|part| part.get(key)).and_then(serde_json::Value::as_u64);
        let weight_bits = quantized("bits").unwrap_or(match sums.packed {
            true => 4,
            false => number_bytes * 8,
        });
        let expert_intermediate_size =
            config.number("moe_intermediate_size").or(config.number("intermediate_size")).unwrap_or(0);
        let shared_experts = config.number("n_shared_experts").unwrap_or(0);
        let latent_attention = config.number("kv_lora_rank").is_some();
        let head_dim = config.head_dim().unwrap_or(0);
        let query_dim = config.number("qk_nope_head_dim").filter(|_| latent_attention);
        let query_dim = query_dim.map(|dim| dim + config.number("qk_rope_head_dim").unwrap_or(0));
        Ok(Self {
            architecture: config.model_type().to_owned(),
            layers,
            embeddings_bytes: sums.embeddings,
            head_bytes: sums.head,
            tied,
            final_norm_bytes: sums.final_norm,
            elsewhere_bytes: sums.elsewhere,
            not_loaded_bytes: sums.not_loaded,
            cache_is_exact,
            number_bytes,
            hidden_size: config.number("hidden_size").unwrap_or(0),
            vocab_size: config.number("vocab_size").unwrap_or(0),
            intermediate_size: config.number("intermediate_size").unwrap_or(0),
            shared_intermediate_size: shared_experts * expert_intermediate_size
                + config.number("shared_expert_intermediate_size").unwrap_or(0),
            expert_intermediate_size,
            active_experts: config.number("num_experts_per_tok").unwrap_or(0),
            heads: config.heads().unwrap_or(0),
            kv_heads: config.kv_heads().unwrap_or(0),
            query_dim: query_dim.unwrap_or(head_dim),
            value_dim: config.number("v_head_dim").filter(|_| latent_attention).unwrap_or(head_dim),
            latent_attention,
            has_sinks: WITH_SINKS.contains(&config.model_type()),
            divisible_sizes: divisible(&config),
            weight_bits,
            quantization_group: quantized("group_size").filter(|_| sums.packed).unwrap_or(1).max(1),
            context_tokens: ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"]
                .iter()
                .find_map(|key| config.number(key)),
            notes,
        })
    }

    /// All weights, once.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.weights.total()).sum::<u64>()
            + self.embeddings_bytes
            + self.head_bytes
            + self.final_norm_bytes
            + self.elsewhere_bytes
    }

    /// What the last stage of a pipeline holds besides its layers.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.final_norm_bytes + if self.tied { self.embeddings_bytes } else { self.head_bytes }
    }
}

#[derive(Default)]
struct Sums {
    layers: Vec<Weights>,
    embeddings: u64,
    head: u64,
    final_norm: u64,
    elsewhere: u64,
    not_loaded: u64,
    widened: u64,
    packed: bool,
    /// Bytes of stored floating point numbers of four and of two bytes: the activations take the type of the larger.
    float_bytes: [u64; 2],
}

impl Sums {
    fn add(&mut self, tensor: &super::tensors::Tensor, layer_count: Option<u32>) {
        // More layers than any model has: a name that only looks like one.
        const MOST_LAYERS: u32 = 4_096;
        let at = place(&tensor.name, layer_count);
        let bytes = match tensor.dtype {
            Dtype::F8 if at != Place::NotLoaded && !tensor.name.contains("scale") => {
                self.widened += tensor.bytes;
                tensor.bytes.saturating_mul(2)
            }
            _ => tensor.bytes,
        };
        if at != Place::NotLoaded {
            match tensor.dtype.activation_bytes() {
                Some(4) => self.float_bytes[0] += bytes,
                Some(_) => self.float_bytes[1] += bytes,
                None => {}
            }
            self.packed |= tensor.dtype == Dtype::Integer && tensor.name.contains("weight");
        }
        match at {
            Place::Layer { index, part, divided } if index < MOST_LAYERS => {
                let index = index as usize;
                if self.layers.len() <= index {
                    self.layers.resize(index + 1, Weights::default());
                }
                let weights = &mut self.layers[index];
                *match part {
                    Part::Attention => &mut weights.attention,
                    Part::Mlp => &mut weights.mlp,
                    Part::Experts => &mut weights.experts,
                    Part::Router => &mut weights.router,
                    Part::Norm => &mut weights.norms,
                    Part::Other => &mut weights.other,
                } += bytes;
                if divided {
                    weights.divided += bytes;
                }
            }
            Place::Layer { .. } | Place::Elsewhere => self.elsewhere += bytes,
            Place::Embeddings => self.embeddings += bytes,
            Place::Head => self.head += bytes,
            Place::FinalNorm => self.final_norm += bytes,
            Place::NotLoaded => self.not_loaded += tensor.bytes,
        }
    }

    /// Four bytes only where the model is in float32; routers and biases often are while the rest is not.
    fn number_bytes(&self, config: &Config<'_>) -> u64 {
        let [four, two] = self.float_bytes;
        if four + two > 0 {
            return if four > two { 4 } else { 2 };
        }
        let stated = config.whole("torch_dtype").or_else(|| config.whole("dtype"));
        if stated.and_then(serde_json::Value::as_str) == Some("float32") { 4 } else { 2 }
    }
}

fn divisible(config: &Config<'_>) -> Vec<u64> {
    let mut sizes: Vec<u64> =
        ["intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"]
            .iter()
            .filter_map(|key| config.number(key))
            .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// For sentences: decimal gigabytes, as disks and downloads are measured.
#[must_use]
pub fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
