"""Watches a model pass from layer to layer, without computing it.

Promises: tracing builds MLX's graph and evaluates masks and the like, never a layer, so no weight of a layer is read;
what `compare` and `check_tail` let pass can be cut between any two layers: hidden states are all that goes from one
layer to the next, each layer gets exactly what it would get in the whole model, and the head looks at nothing but the
last layer's output. Everything else is a `Fatal` of class model_unsupported that names what was found.

Hidden states are replaced by NaN between the layers: what still has a value in the end did not come from them.
"""

from dataclasses import dataclass, field

import mlx.core as mx
from mlx_lm.generate import _merge_caches
from mlx_lm.models.cache import make_prompt_cache

import faults

# Two rows of different length, so that padding shows in the masks, and then a step that generates.
_PROMPTS = ((5, 7, 11), (13, 17, 0)), ((2, 3, 19), (23, 4, 0))
_LENGTHS, _PADDING = [3, 2], [0, 1]
_STEPS = (((6,), (8,)), ((9,), (10,)))
# What the last layer is said to put out.
_LAST_OUTPUT = 0.5


@dataclass
class Call:
    """One call of one layer."""

    layer: int
    hidden: mx.array
    out: mx.array
    # What else it was given, and for caches their position in the list.
    others: list


@dataclass
class Trace:
    """Two passes (a prompt, a step) over the layers `watched`, for two sets of tokens."""

    # Of the first set of tokens, in order: the prompt's calls, then the step's.
    calls: list = field(default_factory=list)
    # The same for the second.
    again: list = field(default_factory=list)
    # The layer each cache belongs to, by position.
    owners: list = field(default_factory=list)
    # Of both steps.
    logits: list = field(default_factory=list)


def change_class(layer, make_call):
    """Gives one layer, and no other of its class, another way of being called: `make_call(class)`."""
    base = type(layer)
    layer.__class__ = type(base.__name__, (base,), {"__call__": make_call(base)})


def trace(network, layers, watched, view=None):
    """Watches `network` pass through its layers; with `view` (pipeline.Stage), as that rank sees them."""
    if len({id(layer) for layer in layers}) < len(layers):
        raise _unsupported("uses a layer twice")
    traced = Trace()
    before = [type(layer) for layer in layers]
    watch = _Watch(len(layers))
    try:
        for index in watched:
            change_class(layers[index], watch.wrap(index))
        for tokens, step, calls in zip(_PROMPTS, _STEPS, (traced.calls, traced.again)):
            singles = [make_prompt_cache(network) if view is None else view.make_cache() for _ in tokens]
            caches = _merge_caches(singles)
            watch.begin(calls, caches)
            for cache in caches:
                cache.prepare(lengths=_LENGTHS, right_padding=_PADDING)
            _call(network, tokens, caches, view)
            watch.check_pass(watched, 1)
            for cache in caches:
                cache.finalize()
            traced.logits.append(_call(network, step, caches, view)[:, -1, :])
            watch.check_pass(watched, 2)
    finally:
        for layer, base in zip(layers, before):
            layer.__class__ = base
    traced.owners = watch.owners()
    return traced


def compare(whole, part):
    """Raises `faults.Fatal` unless the layers of `part` got there what they get in the `whole` model."""
    expected = {}
    for step, calls in enumerate(_by_step(whole.calls)):
        for call in calls:
            expected[step, call.layer] = call
    for calls in (part.calls, part.again):
        for step, group in enumerate(_by_step(calls)):
            for call in group:
                model = expected[step, call.layer]
                if not _same(model.others, call.others):
                    raise _unsupported(
                        f"gives layer {call.layer} something that only the layers of other ranks, or the tokens, can tell"
                    )


def check_tail(part):
    """Raises `faults.Fatal` unless the logits depend on the last layer's output alone. Brings in norm and head."""
    first, second = part.logits
    if mx.any(mx.isnan(first)).item() or not mx.array_equal(first, second).item():
        raise _unsupported("uses more than the last layer's output to make logits")


class _Watch:
    """Stands between a model and its layers."""

    def __init__(self, count):
        self._last = count - 1
        self._owner = {}
        self._count = 0

    def begin(self, calls, caches):
        self._calls = calls
        self._caches = {id(cache): at for at, cache in enumerate(caches)}
        self._count = len(caches)

    def owners(self):
        missing = [at for at in range(self._count) if at not in self._owner]
        if missing:
            raise _unsupported("keeps a cache that it gives to no layer")
        return [self._owner[at] for at in range(self._count)]

    def wrap(self, index):
        def make(base):
            def call(module, hidden, *args, **kwargs):
                others = [self._seen(index, value) for value in (args, kwargs)]
                out = base.__call__(module, hidden, *args, **kwargs)
                if type(out) is not mx.array or not isinstance(hidden, mx.array) or out.shape != hidden.shape:
                    raise _unsupported("passes more than hidden states from layer to layer")
                value = _LAST_OUTPUT if index == self._last else float("nan")
                out = mx.full(out.shape, value, dtype=out.dtype)
                self._calls.append(Call(index, hidden, out, others))
                return out

            return call

        return make

    def check_pass(self, watched, passes):
        """The layers in order, each with the last one's output."""
        order = list(watched) * passes
        if [call.layer for call in self._calls] != order:
            raise _unsupported("does not call its layers one after the other")
        done = self._calls[-len(watched) :]
        if any(call.hidden is not before.out for before, call in zip(done, done[1:])):
            raise _unsupported("does something to the hidden states between two layers")

    def _seen(self, layer, value):
        """A value in a form that can be compared; caches by their position."""
        at = self._caches.get(id(value))
        if at is not None:
            if self._owner.setdefault(at, layer) != layer:
                raise _unsupported("lets two layers share a cache")
            return ("cache",)
        if value is None or isinstance(value, (bool, int, float, str, mx.array, mx.Dtype)):
            return value
        if isinstance(value, (list, tuple)):
            return [self._seen(layer, part) for part in value]
        if isinstance(value, dict):
            return {name: self._seen(layer, part) for name, part in value.items()}
        raise _unsupported(f"passes a {type(value).__name__} to its layers")


def _call(network, tokens, caches, view):
    return network(mx.array(tokens), cache=caches if view is None else view.expand(caches))


def _by_step(calls):
    half = len(calls) // 2
    return calls[:half], calls[half:]


def _same(left, right):
    if isinstance(left, mx.array) or isinstance(right, mx.array):
        return (
            isinstance(left, mx.array)
            and isinstance(right, mx.array)
            and left.shape == right.shape
            and left.dtype == right.dtype
            # NaN is unlike itself, so what comes from hidden states is never the same.
            and mx.array_equal(left, right).item()
        )
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    return type(left) is type(right) and left == right


def _unsupported(what):
    return faults.Fatal(
        faults.MODEL_UNSUPPORTED,
        f"this architecture cannot be cut into this pipeline: it {what}; use other spans, tensor mode, or a node it fits on",
    )
