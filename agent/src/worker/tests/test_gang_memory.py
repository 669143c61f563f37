"""A rank holds its share of a model and little more.

NIGHTSHIFT_ALL_GANGS=1 does it once more with a model of 1 GB.
"""

import json
import os
import pathlib
import unittest

import support
from gang_support import Gang, spans

# What the canary's prompt, its caches and the all-reduce take beside the weights, on models of these widths.
BESIDE_BYTES = 8 << 20


def shares(directory, sizes):
    """Bytes of the weights each rank needs, in rank order."""
    import mlx.core as mx

    weights = {name: weight.nbytes for name, weight in mx.load(str(pathlib.Path(directory) / "model.safetensors")).items()}
    out = []
    for rank, (first, end) in enumerate(spans(*sizes)):
        mine = {f"model.layers.{index}." for index in range(first, end)}
        if rank == 0:
            mine |= {"model.norm.", "lm_head."}
        if rank == len(sizes) - 1:
            mine.add("model.embed_tokens.")
        out.append(sum(size for name, size in weights.items() if name.startswith(tuple(mine))))
    assert sum(out) == sum(weights.values())
    return out


class Memory(unittest.TestCase):
    def holds_its_share(self, sizes, *flags):
        directory = support.model_directory("llama", *flags)
        expected = shares(directory, sizes)
        with Gang(directory, spans(*sizes)) as gang:
            gang.ready()
            gang.finish()
            for rank, share in enumerate(expected):
                peak = gang[rank].of("ready")[0]["peak_memory_bytes"]
                self.assertGreaterEqual(peak, share, rank)
                self.assertLessEqual(peak, 1.05 * share + BESIDE_BYTES, (rank, json.dumps(expected)))

    def test_300_mb(self):
        # Small embeddings, so that training the test's tokenizer stays quick.
        self.holds_its_share((2, 5, 1), "--hidden", "1472", "--layers", "8", "--dtype", "bfloat16")

    @unittest.skipUnless(os.environ.get("NIGHTSHIFT_ALL_GANGS"), "takes 1 GB: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_1_gb(self):
        self.holds_its_share((3, 5), "--hidden", "2048", "--layers", "8", "--dtype", "float32")


if __name__ == "__main__":
    unittest.main()
