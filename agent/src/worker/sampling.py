"""How the next tokens are drawn.

Promises: the draw at a position depends on the row's seed, the position and the model's output there, and on nothing
else: not on the rows beside it, not on what was drawn before in this process. So a row that goes on elsewhere from its
tokens so far goes on as if nothing had happened. All rows share one sampler, whatever they ask for, so that mlx-lm draws
for the whole batch in one call; the generator (generator.py) tells it whose rows it sees.

Filters (top_p, min_p, top_k) look at the model's distribution, temperature is applied after them, as in mlx-lm; tokens
as likely as the last one kept are kept too.
"""

import hashlib
import math

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors

# Below it, dividing by the temperature leaves nothing but the likeliest token.
_GREEDY_BELOW = 1e-4

_MASK = (1 << 64) - 1


class Draw:
    """How one row's tokens are drawn, and at which position it is."""

    __slots__ = ("seed", "position", "greedy", "inverse_temperature", "top_p", "top_k", "log_min_p")

    def __init__(self, request, seed, position):
        self.seed = seed
        self.position = position
        self.greedy = request.temperature < _GREEDY_BELOW or request.top_p <= 0.0 or request.top_k == 1
        self.inverse_temperature = 1.0 if self.greedy else 1.0 / request.temperature
        self.top_p = 1.0 if self.greedy else request.top_p
        self.top_k = 0 if self.greedy else request.top_k
        self.log_min_p = math.log(request.min_p) if request.min_p > 0.0 and not self.greedy else -math.inf


def seed_of(request, seed_base, row):
    """The row's 64-bit seed: its own, or one that job and row decide, equal at every attempt."""
    if request.seed is not None:
        return request.seed & _MASK
    return int.from_bytes(hashlib.blake2b(f"{seed_base}:{row}".encode(), digest_size=8).digest(), "big")


def processors(request):
    """What changes the logits before anything is drawn: `logit_bias`, `repetition_penalty` (over the last 20 tokens)."""
    penalty = request.repetition_penalty if request.repetition_penalty != 1.0 else None
    if not request.logit_bias and penalty is None:
        return ()
    return make_logits_processors(logit_bias=request.logit_bias or None, repetition_penalty=penalty)


class BatchSampler:
    """The one sampler of a batch generator. Rows enter under their uid before their first token and leave after the last."""

    def __init__(self):
        self._draws = {}
        # Rows that are not greedy; while there are none, nothing needs to be known about the batch.
        self._drawing = 0
        self._uids = []
        self._layout = None

    def enter(self, uid, draw):
        self._draws[uid] = draw
        self._drawing += not draw.greedy

    def leave(self, uid):
        self._drawing -= not self._draws.pop(uid).greedy

    def about_to_draw(self, uids):
        """Says whose log-probabilities the next call gets, in order."""
        if self._uids != uids:
            self._uids = list(uids)
            self._layout = None

    def __call__(self, logprobs):
        """Log-probabilities [rows, vocabulary] to tokens [rows]."""
        if not self._drawing:
            return mx.argmax(logprobs, axis=-1)
        if self._layout is None or self._layout.vocab_size != logprobs.shape[-1]:
            self._layout = _Layout([self._draws[uid] for uid in self._uids], logprobs.shape[-1])
        return self._layout.draw(logprobs)


class _Layout:
    """The rows of a batch as columns, for as long as the batch stays the same."""

    def __init__(self, draws, vocab_size):
        self.vocab_size = vocab_size
        self._draws = draws
        self._greedy = all(draw.greedy for draw in draws)

        def column(values):
            return mx.array(values)[:, None]

        # None where it would change nothing: on small models every operation counts.
        self._sampled = self._inverse_temperature = None
        if any(draw.greedy for draw in draws):
            self._sampled = column([not draw.greedy for draw in draws])
        if any(draw.inverse_temperature != 1.0 for draw in draws):
            self._inverse_temperature = column([draw.inverse_temperature for draw in draws])
        self._top_p = self._top_k = self._log_min_p = None
        if any(draw.top_p < 1.0 for draw in draws):
            self._top_p = column([draw.top_p for draw in draws])
        if any(0 < draw.top_k < vocab_size for draw in draws):
            self._top_k = column([draw.top_k if 0 < draw.top_k < vocab_size else vocab_size for draw in draws])
        if any(draw.log_min_p > -math.inf for draw in draws):
            self._log_min_p = column([draw.log_min_p for draw in draws])
        self._noise = mx.vmap(lambda key: mx.random.gumbel((vocab_size,), key=key))

    def draw(self, logprobs):
        if self._greedy:
            return mx.argmax(logprobs, axis=-1)
        keys = []
        for draw in self._draws:
            keys.append(_key(draw.seed, draw.position))
            draw.position += 1
        # In float32: noise of half precision would round away the unlikely tokens.
        logprobs = self._filtered(logprobs.astype(mx.float32))
        if self._inverse_temperature is not None:
            logprobs = logprobs * self._inverse_temperature
        noise = self._noise(mx.array(keys, dtype=mx.uint32))
        if self._sampled is not None:
            noise = mx.where(self._sampled, noise, 0.0)
        # The largest of logit + Gumbel noise is a draw from the softmax of the logits.
        return mx.argmax(logprobs + noise, axis=-1)

    def _filtered(self, logprobs):
        """Everything below the least likely token that is kept becomes impossible."""
        if self._top_p is None and self._top_k is None and self._log_min_p is None:
            return logprobs
        ascending = mx.sort(logprobs, axis=-1)
        least = mx.full((len(self._draws), 1), -math.inf)
        if self._top_p is not None:
            probabilities = mx.exp(ascending)
            above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
            total = above[:, :1] + probabilities[:, :1]
            dropped = (above >= self._top_p * total).sum(axis=-1, keepdims=True)
            edge = mx.take_along_axis(ascending, dropped, axis=-1)
            least = mx.where(self._top_p < 1.0, edge, least)
        if self._log_min_p is not None:
            least = mx.maximum(least, ascending[:, -1:] + self._log_min_p)
        if self._top_k is not None:
            least = mx.maximum(least, mx.take_along_axis(ascending, self.vocab_size - self._top_k, axis=-1))
        return mx.where(logprobs < least, -math.inf, logprobs)


def _key(seed, position):
    """A key of mx.random from seed and position, mixed (SplitMix64) so that neighbours have nothing in common."""
    mixed = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    mixed ^= mixed >> 31
    return mixed >> 32, mixed & 0xFFFFFFFF
