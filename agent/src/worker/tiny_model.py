"""Makes model directories small enough to test with, of the shapes that large models have.

    tiny_model.py --arch qwen3_moe --out DIR [--layers N --hidden N --vocab N --seed N --dtype float32 …]

Promises: the directory is one that `mlx_lm.load` takes as it takes any other (config.json, safetensors with an index,
tokenizer); it appears under its name complete or not at all; equal arguments give equal bytes; the weights are random
but scaled so that greedy text varies instead of repeating one token. What the model says is noise.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import zlib

import tiny_tokenizer

HEAD_DIM = 16


def _base(o):
    heads = max(2, o.hidden // HEAD_DIM)
    return {
        "hidden_size": o.hidden,
        "num_hidden_layers": o.layers,
        "intermediate_size": 2 * o.hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": max(2, heads // 2),
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": o.vocab,
        "max_position_embeddings": o.max_position,
        "tie_word_embeddings": False,
        "attention_bias": False,
    }


def _llama(o):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_base(o)}


def _qwen3(o):
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_base(o)}


def _qwen3_moe(o):
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_base(o),
        "num_experts": o.moe_experts,
        "num_experts_per_tok": min(2, o.moe_experts),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": o.hidden,
        "norm_topk_prob": True,
    }


def _gpt_oss(o):
    if o.layers < 2:
        raise ValueError("gpt_oss alternates two kinds of attention and needs at least 2 layers")
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **_base(o),
        "intermediate_size": o.hidden,
        "attention_bias": True,
        "num_local_experts": o.moe_experts,
        "num_experts_per_tok": min(2, o.moe_experts),
        # Short, so that a test of ordinary length slides it.
        "sliding_window": 32,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(o.layers)],
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": max(1, o.max_position // 2),
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    }


def _deepseek_v3(o):
    heads = max(2, o.hidden // HEAD_DIM)
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_base(o),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "moe_intermediate_size": o.hidden,
        "n_shared_experts": 1,
        "n_routed_experts": o.moe_experts,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": HEAD_DIM,
        "v_head_dim": HEAD_DIM,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": min(2, o.moe_experts),
        "moe_layer_freq": 1,
        "first_k_dense_replace": 1,
    }


def _glm4_moe(o):
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        **_base(o),
        "moe_intermediate_size": o.hidden,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "n_routed_experts": o.moe_experts,
        "routed_scaling_factor": 1.0,
        "num_experts_per_tok": min(2, o.moe_experts),
        "first_k_dense_replace": 1,
        "rope_scaling": None,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


ARCHITECTURES = {
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
    "glm4_moe": _glm4_moe,
}


def make(options):
    """Makes the model directory `options.out`; raises FileExistsError where something is there already."""
    out = os.path.abspath(options.out)
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists already; remove it or choose another name")
    parent = os.path.dirname(out)
    os.makedirs(parent, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=".tiny-model-", dir=parent)
    try:
        _fill(unfinished, options)
        # mkdtemp's directory is for its owner alone; workers may run as another user.
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def _fill(directory, options):
    tokenizer = tiny_tokenizer.train(options.vocab, options.seed)
    eos = tokenizer.token_to_id(tiny_tokenizer.EOS)
    config = {
        **ARCHITECTURES[options.arch](options),
        "torch_dtype": options.dtype,
        "bos_token_id": tokenizer.token_to_id(tiny_tokenizer.BOS),
        "eos_token_id": eos,
        "pad_token_id": tokenizer.token_to_id(tiny_tokenizer.PAD),
    }
    tiny_tokenizer.write(tokenizer, directory, options.max_position, options.chat_template)
    _write_json(os.path.join(directory, "config.json"), config)
    _write_json(os.path.join(directory, "generation_config.json"), {"eos_token_id": eos})
    _write_weights(directory, config, options)


def _write_weights(directory, config, options):
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    model_class, arguments_class = _get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    dtype = getattr(mx, options.dtype)
    weights = {}
    for name, parameter in sorted(tree_flatten(model.parameters())):
        weight = _random_weight(name, parameter.shape, options.seed)
        if name == "lm_head.weight":
            # Answers end by themselves now and then, but seldom: one of some ten thousand tokens.
            weight[config["eos_token_id"]] *= 0.75
        weights[name] = mx.array(weight).astype(dtype)
    file_name = "model.safetensors"
    path = os.path.join(directory, file_name)
    mx.save_safetensors(path, weights, metadata={"format": "mlx"})
    os.chmod(path, 0o644)
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: file_name for name in weights}}
    _write_json(os.path.join(directory, "model.safetensors.index.json"), index)


def _random_weight(name, shape, seed):
    """The weight of this name: drawn from the name and the seed alone, so that neither the order nor the machine matters."""
    import numpy

    rng = numpy.random.Generator(numpy.random.PCG64([seed, zlib.crc32(name.encode())]))
    noise = rng.standard_normal(tuple(shape), dtype=numpy.float32)
    leaf = name.rsplit(".", 2)
    if "norm" in leaf[-2]:
        return 1.0 + 0.1 * noise
    if name.endswith(("bias", "sinks")):
        return 0.1 * noise
    if "embed_tokens" in name:
        return noise
    # Projections keep the variance of what goes through them; the head and the queries get more, so that the next token
    # is a clear choice and depends on what was said before, without which greedy text falls into short loops.
    gain = 4.0 if "lm_head" in name else 1.5 if ".q_" in name or ".k_" in name else 1.0
    return noise * numpy.float32(gain / math.sqrt(shape[-1]))


def _write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def _parse(arguments):
    parser = argparse.ArgumentParser(prog="tiny-model", description="Makes a tiny model with random weights.")
    parser.add_argument("--arch", required=True, choices=sorted(ARCHITECTURES))
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--max-position", type=int, default=2048)
    parser.add_argument("--moe-experts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--no-chat-template", dest="chat_template", action="store_false")
    options = parser.parse_args(arguments)
    if options.hidden < 2 * HEAD_DIM or options.hidden % HEAD_DIM:
        parser.error(f"--hidden must be a multiple of {HEAD_DIM}, and {2 * HEAD_DIM} at least")
    if options.vocab < tiny_tokenizer.SMALLEST_VOCAB_SIZE:
        parser.error(f"--vocab must be {tiny_tokenizer.SMALLEST_VOCAB_SIZE} at least")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    for name in ("layers", "max_position", "moe_experts"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 at least")
    return options


def main(arguments=None):
    options = _parse(arguments)
    try:
        print(make(options))
    except (OSError, ValueError) as error:
        print(f"tiny-model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
