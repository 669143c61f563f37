"""Runs the agent's worker and ends it between two steps, as a file of faults for its node says.

Arguments: the agent's state directory (it holds the worker's program), the file of faults. The file holds a JSON list of
objects and is read anew at each step, so that a test can add to it: `text` goes to stderr; `end` is an exit code, "abort" or
"hang"; `rows`, where given, makes it happen whenever one of these rows is in work, and otherwise it happens `times` times,
each after `after` steps of a worker with rows in work; `rank`, where given, is the only rank that does it.
"""

import glob
import json
import os
import runpy
import sys
import time

STATE_DIR, FAULTS = sys.argv[1:3]
[CODE] = glob.glob(os.path.join(STATE_DIR, "worker-code", "*"))
sys.path.insert(0, CODE)


worked = 0


def take(rows, rank):
    """The fault to play now; one that is used up is taken out of the file first."""
    try:
        with open(FAULTS) as file:
            faults = json.load(file)
    except FileNotFoundError:
        return None
    for fault in faults:
        if fault.get("rank", rank) != rank:
            continue
        if "rows" in fault:
            if rows.intersection(fault["rows"]):
                return fault
        elif fault["times"] > 0 and worked > fault["after"]:
            fault["times"] -= 1
            with open(FAULTS + ".new", "w") as file:
                json.dump(faults, file)
            os.replace(FAULTS + ".new", FAULTS)
            return fault
    return None


def play(fault):
    print(fault["text"], file=sys.stderr, flush=True)
    if fault["end"] == "hang":
        time.sleep(1e6)
    if fault["end"] == "abort":
        os.abort()
    os._exit(fault["end"])


def before(method, rows_and_rank):
    def wrapped(self, *arguments):
        global worked
        rows, rank = rows_and_rank(self)
        worked += bool(rows or rank > 0)
        fault = take(rows, rank)
        if fault is not None:
            play(fault)
        return method(self, *arguments)

    return wrapped


import engine  # noqa: E402
import follower  # noqa: E402

engine.Engine.step = before(
    engine.Engine.step, lambda self: ({row.number for row in self._active.values()}, 0)
)
follower.Follower._count = before(
    follower.Follower._count, lambda self: (set(), self._formed.gang.rank)
)
sys.argv = [os.path.join(CODE, "main.py")]
runpy.run_path(sys.argv[0], run_name="__main__")
