"""Tries the link between two nodes before a job relies on it: no model, two ranks, sums of which the answer is known.

Promises: a link passes only when both ranks found one another as the ranks of a gang do (formation.py), and every value of
every sum was right at both; what it costs is bounded in time and bytes; it ends by itself, whatever it is blocked in.

What is measured is what ranks feel: how long a sum of one number takes, and at what rate a large one is exchanged.
"""

import time

import mlx.core as mx

import canary
import channel
import faults
import formation
from gang import parse_gang
from protocol import MalformedCommand

# A token costs one or two sums a layer, of a few KB each: a few dozen tries give the delay without the odd late one.
ROUND_TRIPS = 64
# 4 MiB: an RDMA link of 80 Gb/s takes half a millisecond for it, a network of 100 Mb/s a third of a second.
LARGE_VALUES = 1 << 20
# The first sets buffers up; the quickest of the others is what the link can do.
LARGE_ROUNDS = 6
# For all sums together. A link that takes longer carries less than 2 MB/s: no night is worth waiting for that.
MEASURE_LIMIT_S = 15.0
# The other rank has done the same sums, and has only to hear that this was all.
PART_LIMIT_S = 5.0


def run(command, events, wake):
    """Carries out a `test_link` command; raises `faults.Fatal` where the link does not pass."""
    gang = parse_gang(command)
    if gang is None or gang.world_size != 2:
        raise MalformedCommand("a link is tried by two ranks")
    link = (channel.Leading if gang.leads else channel.Following)(gang, events, wake)
    try:
        formed = formation.form(gang, link, events)
        message = (
            f"the ranks found one another over {gang.backend}, but their sums were not done within "
            f"{MEASURE_LIMIT_S:g} s: the link carries too little, or swallows what is large"
        )
        with formation.Limit(MEASURE_LIMIT_S, events, message):
            measured = _measure(gang, link, formed.group)
    except BaseException as error:
        link.fail(error.message if isinstance(error, faults.Fatal) else faults.describe(error))
        raise
    # Before it is said: an end of which the agent has heard that it is good does not turn bad by the other's.
    link.let_go()
    events.send({"ev": "measured", **measured})
    _part(gang, link)


def _part(gang, link):
    """Neither end takes the other's end for a loss. What comes to nothing here changes nothing: both have been let go."""
    try:
        if gang.leads:
            link.end(PART_LIMIT_S)
        else:
            link.await_end(PART_LIMIT_S)
            link.end()
    except faults.Fatal:
        # The other is gone already, with all that it had to say.
        pass


def _measure(gang, link, group):
    one = mx.array([1.0])
    trips = sorted(_seconds(one, group)[0] for _ in range(ROUND_TRIPS))
    fault, best_s = None, float("inf")
    for number in range(LARGE_ROUNDS):
        mine = canary.values(gang.rank + number, LARGE_VALUES)
        expected = sum(canary.values(rank + number, LARGE_VALUES) for rank in range(gang.world_size))
        mx.eval(mine, expected)
        seconds, total = _seconds(mine, group)
        best_s = min(best_s, seconds) if number else best_s
        wrong = mx.sum(total != expected).item()
        if wrong and fault is None:
            fault = f"{wrong} of {LARGE_VALUES} values of a known sum over {gang.backend} are wrong"
    canary.agree(gang, link, "sums", fault)
    return {
        "round_trip_us": max(1, round(trips[len(trips) // 2] * 1e6)),
        "bytes_per_s": round(LARGE_VALUES * mine.itemsize / best_s),
    }


def _seconds(mine, group):
    started = time.perf_counter()
    total = mx.distributed.all_sum(mine, group=group)
    mx.eval(total)
    return time.perf_counter() - started, total
