"""A row on its way through the worker.

                prepare               a place is free        last token, stop or end
    waiting ─────────────▶ queued ───────────────▶ active ─────────────────▶ result
       │                      │                      │
       └──── returned ────────┘                      └──── checkpoint, returned

Promises: preparing a row depends on nothing but its request, the model and the tokens it was handed, so that a row that
goes on from a checkpoint ends with the text, log-probabilities and usage it would have had undisturbed.
"""

import prompt
import request
import sampling
from text import StopWatch, find_stop


class Row:
    """One row: what was asked, and what there is of the answer."""

    __slots__ = (
        "number",
        "attempt",
        "line",
        "request",
        # The prompt's tokens, and how many of what is to be read before generation have been read.
        "prompt",
        "read_tokens",
        # All tokens of the answer so far, those of earlier attempts included, and how many of them those are.
        "tokens",
        "resumed_tokens",
        # One entry a token (response.logprob_entry), or None where nobody asked.
        "entries",
        "max_tokens",
        "stop_watch",
        "draw",
        "processors",
        # The batch generator's name for the row.
        "uid",
        # How many of `tokens` the last checkpoint reached.
        "checkpointed",
    )

    def __init__(self, command):
        self.number = command["row"]
        self.attempt = command["attempt"]
        self.line = command["request"]
        self.request = None
        self.prompt = []
        self.read_tokens = 0
        self.tokens = command.get("tokens") or []
        self.entries = command.get("logprobs")
        self.resumed_tokens = 0
        self.max_tokens = 0
        self.stop_watch = None
        self.draw = None
        self.processors = ()
        self.uid = None
        self.checkpointed = 0

    def prepare(self, model, default_max_tokens, seed_base):
        """Makes the row ready for the generator; raises `request.Refused`.

        Returns the finish reason when the tokens it came with are the whole answer already, otherwise None.
        """
        self.request = request.parse(self.line, model.vocab_size)
        self.line = None
        self.prompt = prompt.encode(self.request, model)
        self.max_tokens = self.request.max_tokens or default_max_tokens
        if model.context_tokens is not None:
            self.max_tokens = min(self.max_tokens, model.context_tokens - len(self.prompt))
        reason = self._take_up(model)
        self.resumed_tokens = self.checkpointed = len(self.tokens)
        if reason is None:
            seed = sampling.seed_of(self.request, seed_base, self.number)
            self.draw = sampling.Draw(self.request, seed, len(self.tokens))
            self.processors = sampling.processors(self.request)
        return reason

    def _take_up(self, model):
        """Goes through the tokens of an earlier attempt as if they were generated now; cuts what is past an end."""
        handed = self.tokens[: self.max_tokens]
        if any(not isinstance(token, int) or not 0 <= token < model.vocab_size for token in handed):
            raise ValueError("the tokens to resume from are not of this model's vocabulary")
        if self.request.top_logprobs is None:
            self.entries = None
        else:
            # Tokens without their entries cannot be part of the answer: they are generated again.
            self.entries = (self.entries or [])[: len(handed)]
            handed = handed[: len(self.entries)]
        if self.request.stops:
            self.stop_watch = StopWatch(self.request.stops, model.tokenizer.decode)
        self.tokens = []
        for token in handed:
            if token in model.eos_tokens:
                return self._ended("stop")
            self.tokens.append(token)
            if self.stop_watch is not None and self.stop_watch.add(token) and self.is_stopped(model):
                return self._ended("stop")
        return "length" if len(self.tokens) >= self.max_tokens else None

    def _ended(self, reason):
        if self.entries is not None:
            del self.entries[len(self.tokens) :]
        return reason

    def is_stopped(self, model):
        """Whether the text so far holds a stop string."""
        return find_stop(model.tokenizer.decode(self.tokens), self.request.stops) >= 0

    def remaining_tokens(self):
        return self.max_tokens - len(self.tokens)

    def tokens_to_read(self):
        """What the model reads before it generates."""
        return self.prompt + self.tokens

    def checkpoint(self, offset):
        """The row's tokens from `offset` on, as the protocol writes them."""
        part = {"row": self.number, "attempt": self.attempt, "offset": offset, "tokens": self.tokens[offset:]}
        if self.entries is not None:
            part["logprobs"] = self.entries[offset:]
        return part
