"""The measure of gangs: a rank as one writes it by hand, with mlx-lm's own cut of the model and the calls of `bare.py`.

    MLX_RANK=R MLX_HOSTFILE=FILE bare_gang.py MODEL INPUT.jsonl BATCH pipeline|tensor

All ranks read the same rows and make the same calls, so each has every answer; rank 0 prints them as `bare.py` does. Each
keeps to a processor of its own, where there are enough (see `gang.rs`).
"""

import json
import os
import sys

CORES = sorted(os.sched_getaffinity(0))
RANK = int(os.environ["MLX_RANK"])
if RANK < len(CORES):
    os.sched_setaffinity(0, {CORES[RANK]})

# ruff: noqa: E402 -- threads inherit the processor, so it is chosen before any is started.

import mlx.core as mx
from bare import batched, rows
from mlx_lm.generate import generation_stream
from mlx_lm.utils import sharded_load


def main():
    path, source, batch, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    group = mx.distributed.init(backend="ring", strict=True)
    model, tokenizer = sharded_load(path, **{f"{mode}_group": group})
    done = batched(model, tokenizer, list(rows(source, tokenizer)), batch)
    # mlx-lm has computed a token ahead: a rank that went now would take the connection from under another's last step.
    mx.synchronize(generation_stream)
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
    if group.rank() == 0:
        for row in done:
            print(json.dumps(row))


main()
