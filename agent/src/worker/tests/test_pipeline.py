"""Cutting models of many architectures, in one process: what the stages compute together is what the model computes.

Hidden states go from stage to stage through a dictionary instead of a network; the results must be equal to the last bit.
By default a few architectures of different build; NIGHTSHIFT_ALL_GANGS=1 takes all of them.
"""

import importlib
import os
import unittest
from unittest import mock

import support  # noqa: F401  (finds the modules)
import mlx.core as mx
from mlx.utils import tree_map

import gang
import pipeline
from faults import Fatal

ALL = bool(os.environ.get("NIGHTSHIFT_ALL_GANGS"))
LAYERS = 6

# Names differ from model to model; each takes those it knows.
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("hidden_size", "hidden_dim", "n_embd", "d_model", "block_dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "n_inner", "mlp_hidden_size", "block_ff_dim"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "n_head", "index_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "linear_num_key_heads", "n_groups"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_lora_rank", "q_lora_rank", "index_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "ssm_state_size", "mamba_head_dim", "state_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("linear_num_value_heads", "linear_conv_kernel_dim", "conv_kernel"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "interleave_moe_layer_step"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("decoder_sparse_step", "moe_layer_freq", "num_dense_layers"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "index_topk", "qk_rope_head_dim", "time_step_rank"), 8),
    **dict.fromkeys(("vocab_size", "padded_vocab_size"), 200),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"), 512),
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"), 1e-5),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "bias", "conv_bias", "tie_word_embeddings"), False),
    **dict.fromkeys(("norm_topk_prob", "use_qk_norm", "use_conv_bias", "use_expert_bias", "use_rope"), True),
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "residual_multiplier", "routed_scaling_factor"), 1.0),
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "rope_pct": 0.5,
    "sliding_window_pattern": 3,
    "full_attention_interval": 3,
    "mlp_only_layers": [],
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "attention_multiplier": 0.25,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "logit_scale": 0.5,
    "time_step_limit": (0.0, 10.0),
    "chunk_size": 64,
    "rope_scaling": None,
}
YARN = {"rope_theta": 1e4, "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}


def alternating(*kinds):
    return (list(kinds) * LAYERS)[:LAYERS]


SLIDING_TWICE = alternating("sliding_attention", "sliding_attention", "full_attention")
# Of different build: hybrid, layers without caches, two kinds of masks, caches of two parts, scales that ask for the offset.
FEW = {
    "qwen3_next": {},
    "nemotron_h": {"hybrid_override_pattern": "M*-M-*", "mamba_hidden_act": "silu", "mamba_proj_bias": False},
    "gemma3_text": {"tie_word_embeddings": True},
    "deepseek_v32": {},
    "ministral3": {"layer_types": alternating("sliding_attention", "full_attention"), "rope_parameters": YARN},
    "llama4_text": {"no_rope_layers": alternating(1, 1, 0), "attn_temperature_tuning": 1, "floor_scale": 4, "attn_scale": 0.1},
}
MORE = {
    "afmoe": {"layer_types": SLIDING_TWICE},
    "cohere": {},
    "cohere2": {},
    "deepseek_v2": {"rope_scaling": YARN},
    "deepseek_v3": {},
    "dots1": {},
    "ernie4_5_moe": {},
    "exaone4": {"sliding_window_pattern": "LLG"},
    "gemma2": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_oss": {"layer_types": alternating("sliding_attention", "full_attention")},
    "granite": {},
    "granitemoe": {},
    "internlm3": {},
    "lfm2_moe": {"layer_types": alternating("conv", "conv", "full_attention"), "conv_L_cache": 3},
    "llama": {},
    "mamba2": {"num_heads": 8, "expand": 2},
    "mimo": {"num_nextn_predict_layers": 1},
    "minimax": {"rotary_dim": 8},
    "mistral4": {"rope_parameters": YARN},
    "mixtral": {},
    "olmo2": {},
    "olmo3": {"layer_types": SLIDING_TWICE},
    "olmoe": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {"attention_out_bias": False},
    "solar_open": {},
    "stablelm": {"use_qkv_bias": False, "qk_layernorm": False},
    "starcoder2": {},
}
REFUSED = {
    # Later layers read the keys of an earlier one.
    "afm7": ({"num_kv_reuse_layers": 2}, "cannot be cut"),
    # Its layers are gone through twice.
    "iquestloopcoder": ({"loop_num": 2, "loop_window_size": 8}, "one after the other"),
}


class Wire:
    """Stands in for mx.distributed."""

    def __init__(self):
        self.rank = 0
        self._under_way = {}

    def send(self, array, destination, *, group):
        self._under_way[destination] = array
        return array

    def recv(self, shape, dtype, _source, *, group):
        array = self._under_way.pop(self.rank)
        assert tuple(array.shape) == tuple(shape) and array.dtype == dtype, "both ends agree on what travels"
        return array


def network(name, changes):
    """The model with random weights, the same at each call."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    built = module.Model(module.ModelArgs.from_dict({**SIZES, **changes, "model_type": name}))
    mx.random.seed(7)

    def drawn(weight):
        if weight.ndim < 2:
            return 1.0 + 0.3 * mx.random.normal(weight.shape)
        return mx.random.normal(weight.shape) / weight.shape[-1] ** 0.5

    built.update(tree_map(drawn, built.parameters()))
    mx.eval(built.parameters())
    return built.eval()


def run(stages, wire):
    """Logits of a padded prompt of two rows and of some steps after it; `stages` from the first layers on."""
    from mlx_lm.generate import _merge_caches
    from mlx_lm.models.cache import make_prompt_cache

    caches = [_merge_caches([make_prompt_cache(stage) for _ in range(2)]) for stage in stages]
    prompt = mx.array([[3, 5, 7, 9, 11, 2, 4, 8, 6, 10], [4, 6, 8, 1, 2, 3, 0, 0, 0, 0]])
    for cache in sum(caches, []):
        cache.prepare(lengths=[10, 6], right_padding=[0, 4])
    out = []
    for tokens in (prompt, *(mx.array([[20 + step], [30 + step]]) for step in range(4))):
        for at, (stage, cache) in enumerate(zip(stages, caches)):
            wire.rank = len(stages) - 1 - at
            logits = stage(tokens, cache=cache)
            mx.eval([one.state for one in cache])
        if tokens is prompt:
            for cache in sum(caches, []):
                cache.finalize()
            logits = logits[:1]
        out.append(logits[:, -1, :])
    return out


class Architectures(unittest.TestCase):
    def setUp(self):
        self.wire = Wire()
        for name in ("send", "recv"):
            patch = mock.patch.object(mx.distributed, name, getattr(self.wire, name))
            patch.start()
            self.addCleanup(patch.stop)

    def stages(self, name, changes, sizes):
        from gang_support import spans

        cut = tuple(map(tuple, spans(*sizes)))
        return [
            pipeline.Stage(
                network(name, changes),
                gang.Gang("pipeline", "ring", rank, len(sizes), cut, ("x", 1), b""),
                None,
            )
            for rank in reversed(range(len(sizes)))
        ]

    def test_stages_compute_what_the_model_computes(self):
        for name, changes in {**FEW, **(MORE if ALL else {})}.items():
            with self.subTest(architecture=name):
                expected = run([network(name, changes)], self.wire)
                self.assertFalse(any(mx.any(mx.isnan(logits)).item() for logits in expected))
                for sizes in ((1, 5), (2, 3, 1), (5, 1)) if ALL else ((2, 3, 1),):
                    got = run(self.stages(name, changes, sizes), self.wire)
                    self.assertTrue(all(mx.array_equal(a, b).item() for a, b in zip(got, expected)), sizes)

    def test_what_cannot_be_cut_is_refused(self):
        for name, (changes, words) in REFUSED.items():
            with self.subTest(architecture=name), self.assertRaises(Fatal) as caught:
                self.stages(name, changes, (3, 3))
            self.assertEqual(caught.exception.fault, "model_unsupported")
            self.assertIn(words, caught.exception.message)

    def test_a_span_must_keep_something(self):
        changes = {**FEW["nemotron_h"], "hybrid_override_pattern": "M*-M*-"}
        with self.assertRaises(Fatal) as caught:
            self.stages("nemotron_h", changes, (5, 1))
        self.assertIn("keep no state between tokens", caught.exception.message)

    def test_weights_of_other_spans_are_gone(self):
        from mlx.utils import tree_flatten

        first, last = self.stages("llama", {}, (2, 4))
        for stage, kept in ((first, {0, 1}), (last, {2, 3, 4, 5})):
            names = [name.split(".") for name, _ in tree_flatten(stage._network.parameters())]
            self.assertEqual({int(name[2]) for name in names if name[1] == "layers"}, kept)
            self.assertEqual(len(stage.make_cache()), len(kept))


if __name__ == "__main__":
    unittest.main()
