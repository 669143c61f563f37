//! What the past of a row costs in each layer, as mlx-lm 0.32.2 keeps it (`mlx_lm/models/cache.py`, each model's
//! `make_cache`).

use serde_json::Value;

/// Tokens by which a cache grows (`KVCache.step`).
const STEP_TOKENS: u64 = 256;

/// What one row needs in one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// Keys and values of every token.
    Grows {
        /// For one token.
        bytes_per_token: u64,
    },
    /// Keys and values of the last tokens (sliding window, chunked attention).
    Window {
        /// For one token.
        bytes_per_token: u64,
        /// How many are kept.
        window_tokens: u64,
    },
    /// A state that does not grow (linear attention, convolution).
    Fixed {
        /// For one row.
        bytes: u64,
    },
}

impl Cache {
    /// Bytes of one row of this many tokens. While a prompt is read, a window also holds the piece being read.
    #[must_use]
    pub fn row_bytes(&self, context_tokens: u64, prefill_step_tokens: u64) -> u64 {
        let grown = context_tokens.div_ceil(STEP_TOKENS).saturating_mul(STEP_TOKENS);
        match *self {
            Self::Grows { bytes_per_token } => grown.saturating_mul(bytes_per_token),
            Self::Window { bytes_per_token, window_tokens } => {
                let kept = window_tokens.saturating_add(prefill_step_tokens);
                grown.min(kept).saturating_mul(bytes_per_token)
            }
            Self::Fixed { bytes } => bytes,
        }
    }

    /// How many tokens a layer looks at while a piece of a prompt is read.
    #[must_use]
    pub fn kept_tokens(&self, context_tokens: u64, prefill_step_tokens: u64) -> u64 {
        match *self {
            Self::Grows { .. } => context_tokens,
            Self::Window { window_tokens, .. } => {
                context_tokens.min(window_tokens.saturating_add(prefill_step_tokens))
            }
            Self::Fixed { .. } => 0,
        }
    }

    /// Keys and values of one token; nothing where a state is kept instead.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        match *self {
            Self::Grows { bytes_per_token } | Self::Window { bytes_per_token, .. } => bytes_per_token,
            Self::Fixed { .. } => 0,
        }
    }
}

/// The caches of all layers, and whether that is knowledge or a bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Caches {
    pub(super) layers: Vec<Cache>,
    /// `None` when they are known; otherwise the sentence that says why this is a bound from above.
    pub(super) bound: Option<String>,
}

/// Attention keeps keys and values in every layer, of every token or within `layer_types`' windows.
const PLAIN: [&str; 49] = [
    "apertus",
    "bailing_moe",
    "cohere",
    "deepseek",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone",
    "gemma",
    "gemma2",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_bigcode",
    "gpt_neox",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "Klear",
    "llama",
    "mimo",
    "minicpm",
    "minimax",
    "minimax_m2",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmoe",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
];

/// Keys and values compressed into one latent vector (MLA), cached as such.
const LATENT: [&str; 8] = [
    "deepseek_v3",
    "kimi_k2",
    "joyai_llm_flash",
    "glm4_moe_lite",
    "mistral4",
    "kimi_k25",
    "deepseek_v32",
    "glm_moe_dsa",
];

/// Of those, the ones with an index of keys beside it, which mlx-lm keeps twice.
const INDEXED: [&str; 2] = ["deepseek_v32", "glm_moe_dsa"];

/// Plain ones whose windows `layer_types` tells.
const WINDOW_BY_TYPE: [&str; 6] = ["gpt_oss", "olmo3", "llama", "ministral3", "mistral", "mistral3"];

/// Every n-th layer looks at everything, the others through a window.
const WINDOW_BY_PATTERN: [&str; 3] = ["gemma3", "gemma3_text", "cohere2"];

/// Linear attention with full attention every few layers.
const GATED_DELTA: [&str; 5] = ["qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"];

/// Reads the architecture's caches from the configuration. `number_bytes` is the size of a number of the activations.
pub(super) fn caches(config: &Config<'_>, layer_count: u32, number_bytes: u64) -> Caches {
    match known(config, layer_count, number_bytes) {
        Some(layers) => Caches { layers, bound: None },
        None => bounded(config, layer_count, number_bytes),
    }
}

fn known(config: &Config<'_>, layer_count: u32, number_bytes: u64) -> Option<Vec<Cache>> {
    let kind = config.model_type();
    let plain = || {
        let per_token = 2 * config.kv_heads()? * config.head_dim()? * number_bytes;
        Some(Cache::Grows { bytes_per_token: per_token })
    };
    let windowed = |window_tokens: u64| {
        let Some(Cache::Grows { bytes_per_token }) = plain() else { return None };
        Some(Cache::Window { bytes_per_token, window_tokens })
    };
    let every = |cache: Cache| vec![cache; layer_count as usize];
    if LATENT.contains(&kind) {
        let latent = config.number("kv_lora_rank")? + config.number("qk_rope_head_dim")?;
        let index =
            if INDEXED.contains(&kind) { 2 * config.number("index_head_dim").unwrap_or(128) } else { 0 };
        return Some(every(Cache::Grows { bytes_per_token: (latent + index) * number_bytes }));
    }
    if kind == "deepseek_v2" {
        // This one caches what the latents unfold to.
        let heads = config.number("num_attention_heads")?;
        let key = config.number("qk_nope_head_dim")? + config.number("qk_rope_head_dim")?;
        let per_token = heads * (key + config.number("v_head_dim")?) * number_bytes;
        return Some(every(Cache::Grows { bytes_per_token: per_token }));
    }
    if WINDOW_BY_TYPE.contains(&kind)
        && let Some(types) = config.list("layer_types")
    {
        let slides = |kind: &Value| kind.as_str().is_some_and(|kind| kind != "full_attention");
        if !types.iter().any(slides) {
            return Some(every(plain()?));
        }
        let window = windowed(config.number("sliding_window")?)?;
        let full = plain()?;
        let layers = (0..layer_count as usize)
            .map(|index| if types.get(index).is_some_and(slides) { window } else { full })
            .collect();
        return Some(layers);
    }
    if kind == "gpt_oss" {
        // Its files may leave the alternation out; it begins with a window.
        let (window, full) = (windowed(config.number("sliding_window")?)?, plain()?);
        return Some((0..layer_count).map(|index| if index % 2 == 0 { window } else { full }).collect());
    }
    if WINDOW_BY_PATTERN.contains(&kind) {
        let default = if kind == "cohere2" { 4 } else { 6 };
        let pattern = config.number("sliding_window_pattern").unwrap_or(default).max(1);
        let (window, full) = (windowed(config.number("sliding_window")?)?, plain()?);
        let is_full = |index: u32| u64::from(index) % pattern == pattern - 1;
        return Some((0..layer_count).map(|index| if is_full(index) { full } else { window }).collect());
    }
    if kind == "llama4" || kind == "llama4_text" {
        let (chunk, full) = (windowed(config.number("attention_chunk_size")?)?, plain()?);
        return Some((1..=layer_count).map(|nth| if nth % 4 == 0 { full } else { chunk }).collect());
    }
    if GATED_DELTA.contains(&kind) {
        let keys = config.number("linear_num_key_heads")? * config.number("linear_key_head_dim")?;
        let value_heads = config.number("linear_num_value_heads")?;
        let values = value_heads * config.number("linear_value_head_dim")?;
        let kept = config.number("linear_conv_kernel_dim")?.saturating_sub(1);
        // The state is kept in float32 whatever the model is in.
        let state = values * config.number("linear_key_head_dim")? * 4;
        let linear = Cache::Fixed { bytes: kept * (2 * keys + values) * number_bytes + state };
        let interval = config.number("full_attention_interval").unwrap_or(4).max(1);
        let full = plain()?;
        let is_full = |index: u32| (u64::from(index) + 1) % interval == 0;
        return Some((0..layer_count).map(|index| if is_full(index) { full } else { linear }).collect());
    }
    if PLAIN.contains(&kind) {
        return Some(every(plain()?));
    }
    None
}

/// Keys and values of every token for every head in every layer: what attention could need at most. Layers that keep a
/// state instead keep less than that from a few hundred tokens on.
fn bounded(config: &Config<'_>, layer_count: u32, number_bytes: u64) -> Caches {
    let hidden =
        config.number("hidden_size").or_else(|| config.number("d_model")).or_else(|| config.number("n_embd"));
    let heads = config.number("num_attention_heads").unwrap_or(1);
    let head_dim = ["head_dim", "v_head_dim", "qk_head_dim"]
        .iter()
        .filter_map(|key| config.number(key))
        .chain(hidden.map(|hidden| hidden.div_ceil(heads)))
        .max();
    // Without any of these, as wide as the widest models there are.
    const WIDEST: u64 = 32_768;
    let width = head_dim.map_or(WIDEST, |dim| (dim * heads).max(hidden.unwrap_or(0)));
    let kind = match config.model_type() {
        "" => "of an unnamed architecture".to_owned(),
        kind => format!("of architecture \"{kind}\""),
    };
    Caches {
        layers: vec![Cache::Grows { bytes_per_token: 2 * width * number_bytes }; layer_count as usize],
        bound: Some(format!(
            "the cache {kind} is not known: it is bounded from above, as if every head of every layer kept every token"
        )),
    }
}

/// `config.json`, with what a multimodal model says about its text part in front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config<'a> {
    whole: &'a Value,
    text: Option<&'a Value>,
}

impl<'a> Config<'a> {
    pub(super) fn new(whole: &'a Value) -> Self {
        Self { whole, text: whole.get("text_config").filter(|text| text.is_object()) }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.text
            .and_then(|text| text.get(key))
            .or_else(|| self.whole.get(key))
            .filter(|value| !value.is_null())
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        // Far beyond any real size, and small enough that products of a few cannot overflow.
        const MOST: u64 = 1 << 24;
        self.get(key)?.as_u64().filter(|number| *number <= MOST)
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn list(&self, key: &str) -> Option<&'a Vec<Value>> {
        self.get(key)?.as_array()
    }

    pub(super) fn whole(&self, key: &str) -> Option<&'a Value> {
        self.whole.get(key)
    }

    /// The architecture: that of the text part where there is one, since mlx-lm wraps it.
    pub(super) fn model_type(&self) -> &'a str {
        self.get("model_type").and_then(Value::as_str).unwrap_or("")
    }

    pub(super) fn heads(&self) -> Option<u64> {
        self.number("num_attention_heads")
    }

    pub(super) fn kv_heads(&self) -> Option<u64> {
        // Absent in models without grouped queries.
        self.number("num_key_value_heads").or_else(|| self.heads())
    }

    pub(super) fn head_dim(&self) -> Option<u64> {
        self.number("head_dim").or_else(|| Some(self.number("hidden_size")? / self.heads()?.max(1)))
    }
}
