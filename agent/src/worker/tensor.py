"""Tensor mode: every rank holds a part of every layer, and the ranks add up their parts within each.

Promises: cutting is mlx-lm's own (`shard`); a model that has none, or whose numbers do not divide by the ranks, is a `Fatal`
of class model_unsupported that names the number. The ranks but 0 have no use for the head, and never read it.
"""

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import faults
import tracing

# What is cut, where a configuration names it. mlx-lm divides these without looking at the remainder.
_CUT = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "linear_num_key_heads",
    "linear_num_value_heads",
)


class Share:
    """One rank's share of a model as a network for the batch generator."""

    def __init__(self, network, config, gang, group):
        check(network, config, gang.world_size)
        network.shard(group)
        self._network = network
        self._leads = gang.leads
        self._layers = list(network.layers)
        self._hidden = None
        if not gang.leads:
            self._keep_output(self._layers[-1])

    def weights(self):
        """The weights of the layers, to be brought in."""
        return [weight for layer in self._layers for _, weight in tree_flatten(layer.parameters())]

    def make_cache(self):
        return make_prompt_cache(self._network)

    def __call__(self, tokens, cache):
        """Logits at rank 0; elsewhere something one wide that comes to be with the last layer's output."""
        out = self._network(tokens, cache=cache)
        if self._leads:
            return out
        return mx.depends(mx.zeros((tokens.shape[0], 1, 1)), self._hidden)

    def _keep_output(self, layer):
        base = type(layer)

        def call(module, *args, **kwargs):
            self._hidden = base.__call__(module, *args, **kwargs)
            return self._hidden

        tracing.change_class(layer, lambda _: call)


def check(network, config, world_size):
    """Raises `faults.Fatal` where the model cannot be cut into so many parts."""
    kind = config.get("model_type")
    if not hasattr(network, "shard"):
        raise faults.Fatal(
            faults.MODEL_UNSUPPORTED, f"mlx-lm cannot cut the layers of a {kind} into parts; use a pipeline"
        )
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for name in _CUT:
            value = part.get(name)
            if isinstance(value, int) and value % world_size:
                raise faults.Fatal(
                    faults.MODEL_UNSUPPORTED,
                    f"{name} of this model is {value}, which {world_size} ranks cannot share evenly; "
                    "use a pipeline, or another number of nodes",
                )
        group_size = (config.get("quantization") or {}).get("group_size")
        for name in ("intermediate_size", "moe_intermediate_size"):
            value = part.get(name)
            if isinstance(group_size, int) and isinstance(value, int) and (value // world_size) % group_size:
                raise faults.Fatal(
                    faults.MODEL_UNSUPPORTED,
                    f"{name} of this model is {value}, and {world_size} ranks would cut its groups of {group_size} "
                    "quantised weights apart; use a pipeline, or another number of nodes",
                )
