"""A pipeline for any architecture: a rank runs its own span of a model's layers, whatever model that is.

Promises: nothing of mlx-lm's model code is replaced: the layers of other ranks stay in place as stand-ins that hand on what
they get, so every index, mask and loop in it keeps its meaning; hidden states travel in the type they have in a single
process; weights of other spans are dropped before anything is read; a model that passes more between its layers than
hidden states, or whose masks would come out differently here, is found out by tracing it (tracing.py) and refused.

    rank N-1   tokens ─ embeddings ─ own layers ─ send
    rank r     receive ─ own layers ─ send
    rank 0     receive ─ own layers ─ norm, head ─ logits

MLX computes what is asked for and nothing else. So what a rank does not need (the embeddings in the middle, the head of all
but rank 0) is in its graph and never evaluated, hence never read from disk, and no stand-in is needed for it.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import faults
import tracing


class Stage:
    """One rank's span as a network for the batch generator. Caches are those of the span alone."""

    def __init__(self, network, gang, group):
        try:
            self._take(network, list(network.layers), gang, group)
        except faults.Fatal:
            raise
        except Exception as error:
            # What breaks while the model is watched is a shape of model that nobody foresaw.
            message = f"this architecture could not be cut into a pipeline: {faults.describe(error)}"
            raise faults.Fatal(faults.classify(error, otherwise=faults.MODEL_UNSUPPORTED), message) from error

    def _take(self, network, layers, gang, group):
        _check_count(layers, gang)
        first, end = gang.span
        self._network = network
        self._leads = gang.leads
        self._sent = None
        whole = tracing.trace(network, layers, range(len(layers)))
        # Positions in the model's own list of caches, and what stands at those of other ranks.
        self._positions = [at for at, owner in enumerate(whole.owners) if first <= owner < end]
        if not self._positions:
            raise faults.Fatal(
                faults.MODEL_UNSUPPORTED,
                f"layers {first} to {end - 1} keep no state between tokens, so they cannot be a rank's whole span",
            )
        self._slots = self._fill(make_prompt_cache(network))
        for index, layer in enumerate(layers):
            if not first <= index < end:
                tracing.change_class(layer, _hand_on)
        mine = tracing.trace(network, layers, range(first, end), self)
        tracing.compare(whole, mine)
        if gang.rank == gang.world_size - 1:
            # Whatever lies between the tokens and the first layer, brought in by asking for its result.
            mx.eval(mine.calls[0].hidden)
        if gang.leads:
            tracing.check_tail(mine)
        _drop_weights(network, [layers[i] for i in range(len(layers)) if not first <= i < end], layers[first:end])
        self._layers = layers[first:end]
        if gang.rank < gang.world_size - 1:
            _receive_before(layers[first], whole.calls[first].hidden.dtype, gang.rank + 1, group)
        if not gang.leads:
            self._send_after(layers[end - 1], gang.rank - 1, group)

    def weights(self):
        """The weights of the span's layers, to be brought in."""
        return [weight for layer in self._layers for _, weight in tree_flatten(layer.parameters())]

    def make_cache(self):
        whole = make_prompt_cache(self._network)
        return [whole[at] for at in self._positions]

    def __call__(self, tokens, cache):
        """Logits at rank 0; elsewhere something of their shape but one wide, that comes to be when all has been sent."""
        out = self._network(tokens, cache=self.expand(cache))
        if self._leads:
            return out
        # At once: while a prompt is read nobody asks for more than the caches, and the next rank waits for this.
        mx.async_eval(self._sent)
        return mx.depends(mx.zeros((tokens.shape[0], 1, 1)), self._sent)

    def expand(self, cache):
        """The caches of the span in a list as long as the model's own, those of other ranks stood in for."""
        return [slot if index is None else cache[index] for index, slot in self._slots]

    def _fill(self, whole):
        """For each position (index into the span's caches, None), or where none of its kind is here (None, an empty one).

        Masks are made from the first cache of a kind, wherever that lies. A cache of the same kind in this span has seen
        the same tokens; where there is none no layer here uses the mask, which tracing.compare makes sure of.
        """
        kinds, counting = {}, None
        for index, at in enumerate(self._positions):
            kinds.setdefault(_kind(whole[at]), index)
            if counting is None and hasattr(whole[at], "offset"):
                counting = index
        own = {at: index for index, at in enumerate(self._positions)}
        slots = []
        for at, cache in enumerate(whole):
            # Some models ask the first cache of all how many tokens there are; every cache that counts them knows.
            otherwise = counting if hasattr(cache, "offset") else None
            index = own.get(at, kinds.get(_kind(cache), otherwise))
            slots.append((index, None if index is not None else cache))
        return slots

    def _send_after(self, layer, destination, group):
        base = type(layer)

        def call(module, *args, **kwargs):
            self._sent = mx.distributed.send(base.__call__(module, *args, **kwargs), destination, group=group)
            return self._sent

        tracing.change_class(layer, lambda _: call)


def _check_count(layers, gang):
    planned = gang.spans[gang.world_size - 1][0], gang.spans[0][1]
    if planned[1] != len(layers):
        raise faults.Fatal(
            faults.MODEL_UNSUPPORTED, f"the plan is for a model of {planned[1]} layers, and this one has {len(layers)}"
        )


def _hand_on(_base):
    def call(_module, hidden, *_args, **_kwargs):
        return hidden

    return call


def _receive_before(layer, dtype, source, group):
    base = type(layer)

    def call(module, hidden, *args, **kwargs):
        return base.__call__(module, mx.distributed.recv(hidden.shape, dtype, source, group=group), *args, **kwargs)

    tracing.change_class(layer, lambda _: call)


def _kind(cache):
    """Caches of one kind make the same masks when they have seen the same tokens."""
    parts = tuple(map(_kind, getattr(cache, "caches", ())))
    sizes = tuple(getattr(cache, name, None) for name in ("max_size", "keep", "chunk_size"))
    return type(cache), sizes, parts


def _drop_weights(network, dropped, kept):
    """Takes the arrays out of the layers of other ranks, except those of modules they share with the rest of the model."""
    tops, spared = {id(layer) for layer in dropped}, set()

    def spare(value):
        if isinstance(value, nn.Module):
            if id(value) in tops or id(value) in spared:
                return
            spared.add(id(value))
        if isinstance(value, dict):
            for part in value.values():
                spare(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                spare(part)

    spare(network)
    for layer in kept:
        spare(layer)
    for layer in dropped:
        for module in layer.modules():
            if id(module) not in spared:
                for name in [name for name, value in module.items() if isinstance(value, mx.array)]:
                    del module[name]
