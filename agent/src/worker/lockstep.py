"""What makes the batch generators of a gang take the same steps with the same tokens.

Promises: rank 0 announces each call that changes the batch before it makes it, and the others make the very same calls, so
their batches, caches and collectives are alike at every step; the token drawn at rank 0 is the one all ranks go on with; a
step costs one small frame to each rank, whatever was inserted or removed since the last.

Tokens travel inside the graph, so the generator goes on computing one token ahead: from rank 0 to the highest and from there
down, each a hop to a neighbour. In a pipeline the first stage has them after one, and rank 0 waits for nobody; in tensor mode
a sum of all ranks would do, too, at twice the hops. All transfers of a step follow one another on each rank in one order:
received → layers → sent → tokens.
"""

from functools import partial

import mlx.core as mx

from generator import Generator

# Prompts beyond it go ahead in a frame of their own: ten bytes a token at most, far below channel.MAX_FRAME_BYTES.
MAX_FRAME_TOKENS = 1 << 20


class LeadingGenerator(Generator):
    """Rank 0's generator."""

    def __init__(self, channel, network, on_begin, **options):
        super().__init__(network, on_begin, **options)
        self._channel = channel
        self._calls = []
        self._announced_tokens = 0

    def insert(self, prompts, max_tokens, **options):
        uids = super().insert(prompts, max_tokens, **options)
        size = sum(map(len, prompts))
        if self._announced_tokens + size > MAX_FRAME_TOKENS and self._calls:
            self._announce("calls")
        self._calls.append(["insert", uids, prompts, max_tokens])
        self._announced_tokens += size
        return uids

    def remove(self, uids, **options):
        self._calls.append(["remove", list(uids)])
        return super().remove(uids, **options)

    def next(self):
        if self._calls:
            self._announce("step")
        else:
            self._channel.announce()
        return super().next()

    def _announce(self, operation):
        self._channel.announce({"op": operation, "calls": self._calls})
        self._calls = []
        self._announced_tokens = 0


class FollowingGenerator(Generator):
    """Another rank's generator: carries out what was announced."""

    def __init__(self, formed, network, **options):
        super().__init__(network, lambda uids: None, sampler=_Follow(formed), **options)

    def carry_out(self, calls):
        for name, uids, *rest in calls:
            if name == "remove":
                self.remove(uids)
                continue
            prompts, max_tokens = rest
            inserted = self.insert(prompts, max_tokens=max_tokens)
            if inserted != uids:
                raise RuntimeError(f"the ranks have come apart: rank 0 calls its rows {uids}, this one {inserted}")


class Lead:
    """A sampler at rank 0 that gives its tokens to all ranks."""

    def __init__(self, sampler, formed):
        self._sampler = sampler
        self._give = partial(_give_on, formed)
        self.about_to_draw = sampler.about_to_draw

    def __call__(self, logprobs):
        return self._give(self._sampler(logprobs))


class _Follow:
    """A sampler that takes rank 0's tokens. `logprobs` (see `pipeline.Stage`, `tensor.Share`) only say when this rank's
    part is done."""

    def __init__(self, formed):
        self._take = partial(_take_from_above, formed)

    def __call__(self, logprobs):
        return self._take(logprobs)


def _give_on(formed, tokens):
    return mx.distributed.send(tokens, formed.gang.world_size - 1, group=formed.group)


def _take_from_above(formed, done):
    # What is received hangs on nothing in the graph; sent off first, this rank's part comes before it on the wire.
    mx.async_eval(done)
    rank, size = formed.gang.rank, formed.gang.world_size
    tokens = mx.distributed.recv((done.shape[0],), mx.uint32, (rank + 1) % size, group=formed.group)
    return tokens if rank == 1 else mx.distributed.send(tokens, rank - 1, group=formed.group)
