"""Sums and a prompt of which the answer is known, before a gang or a worker takes rows.

Promises: no rank gets past a sum that is wrong at any rank, or tokens that differ between the ranks or from those on record;
all ranks of the gang then end with class canary_failed and the same sentence. Links that lose or change bytes unseen exist
(FIELD-NOTES 2, JACCL completions), and a model cut wrongly answers fluently.
"""

import time

import mlx.core as mx

import faults

# A few KB, more than one packet on any link.
_SUM_VALUES = 1024
# The first also sets connections up; the quickest of the rest is what a sum costs.
_SUM_ROUNDS = 4
# The default prompt: longer than a sliding window's edge cases of a token or two, short enough to cost one small step.
_PROMPT_TOKENS = 16
# The others are at the same point when rank 0 asks; what takes longer is stuck.
REPORT_LIMIT_S = 30.0


def default_prompt(vocab_size):
    """The same on every node for the same model: spread over the vocabulary, the first few (special) tokens left out."""
    least = min(16, vocab_size // 2)
    return [least + (index * 2654435761 + 40503) % (vocab_size - least) for index in range(_PROMPT_TOKENS)]


def all_reduce(gang, link, group):
    """Sums known vectors, checks them at every rank; returns the milliseconds of one sum."""
    expected = sum(values(rank, _SUM_VALUES) for rank in range(gang.world_size))
    fault, best_s = None, float("inf")
    for number in range(_SUM_ROUNDS):
        mine = values(gang.rank, _SUM_VALUES)
        mx.eval(mine)
        started = time.perf_counter()
        total = mx.distributed.all_sum(mine, group=group)
        mx.eval(total)
        if number:
            best_s = min(best_s, time.perf_counter() - started)
        wrong = mx.sum(total != expected).item()
        if wrong and fault is None:
            fault = f"{wrong} of {_SUM_VALUES} values of a known all-reduce over {gang.backend} are wrong"
    agree(gang, link, "all_reduce", fault)
    return round(best_s * 1000, 3)


def lead_prompt(formed, engine, model):
    """Rank 0: runs the prompt on all ranks; returns its tokens. Raises `faults.Fatal`."""
    given = formed.gang.canary
    tokens, fault = _answer(engine, model, given)
    formed.channel.announce({"op": "canary", "tokens": tokens, "fault": fault})
    agree(formed.gang, formed.channel, "canary", fault)
    return tokens


def follow_prompt(formed, message, tokens):
    """Another rank: compares what it generated with what rank 0 did. Raises `faults.Fatal`."""
    fault = None
    if message["tokens"] != tokens:
        fault = f"the canary prompt gave tokens {tokens}, and at rank 0 {message['tokens']}"
    agree(formed.gang, formed.channel, "canary", fault)


def answer_alone(engine, model, given):
    """An independent worker's tokens; raises `faults.Fatal`."""
    tokens, fault = _answer(engine, model, given)
    if fault is not None:
        raise faults.Fatal(faults.CANARY_FAILED, fault)
    return tokens


def _answer(engine, model, given):
    prompt = list(given.tokens or default_prompt(model.vocab_size))
    if max(prompt) >= model.vocab_size:
        return [], f"the canary prompt has token {max(prompt)}, and the model knows {model.vocab_size}"
    tokens = engine.rehearse(prompt, given.max_tokens)
    if given.expect is not None and tokens != list(given.expect):
        return tokens, f"the canary prompt gave tokens {tokens}, and on record are {list(given.expect)}"
    return tokens, None


def agree(gang, link, what, fault):
    """Every rank tells rank 0 what it found, and rank 0 tells all; raises `faults.Fatal` at each when one found a fault."""
    mine = None if fault is None else f"rank {gang.rank}: {fault}"
    if gang.leads:
        reports = link.collect(what, REPORT_LIMIT_S)
        found = [text for text in (mine, *(report["fault"] for _, report in sorted(reports.items()))) if text]
        verdict = found[0] if found else None
        link.announce({"op": "verdict", "fault": verdict})
    else:
        link.report({"op": what, "fault": mine})
        until = time.monotonic() + REPORT_LIMIT_S
        while (item := link.take(0.5)) is None:
            if time.monotonic() > until:
                raise faults.Fatal(faults.LINK_FAULT, f"rank 0 gave no verdict within {REPORT_LIMIT_S:g} s ({what})")
        verdict = item[1]["fault"]
    if verdict is not None:
        raise faults.Fatal(faults.CANARY_FAILED, verdict)


def values(rank, count):
    """Whole numbers that differ by place and rank and stay far below 2^24, so that float32 adds them exactly."""
    return ((mx.arange(count) * 31 + rank * 17) % 257).astype(mx.float32)
