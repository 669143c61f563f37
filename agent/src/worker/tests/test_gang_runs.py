"""Gangs of real ranks over MLX's ring on loopback: what they answer is what one process answers.

By default each architecture runs as one shape of pipeline and one as a tensor gang; NIGHTSHIFT_ALL_GANGS=1 runs them all.
"""

import functools
import os
import random
import signal
import unittest

import support
from gang_support import Gang, spans
from support import answer, chat, completion, some_rows, text

ALL = bool(os.environ.get("NIGHTSHIFT_ALL_GANGS"))
# Sizes from the first layer on; models have four layers.
TWO, TWO_OTHERWISE, THREE, THREE_OTHERWISE = (1, 3), (3, 1), (1, 2, 1), (2, 1, 1)
SHAPES = {
    "llama": [TWO, THREE],
    "qwen3": [TWO_OTHERWISE, THREE_OTHERWISE],
    "qwen3_moe": [TWO_OTHERWISE, THREE],
    "gpt_oss": [THREE, TWO],
    "deepseek_v3": [TWO, THREE_OTHERWISE],
    "glm4_moe": [TWO, THREE],
}
# Heads and experts' widths of these divide by two; of the models with `THREE_WAYS` by three.
TENSOR = ("gpt_oss",) if not ALL else support.ARCHITECTURES
THREE_WAYS = ("--hidden", "96")
# Not exact to the last bit when rows are batched otherwise, in mlx-lm itself.
LOOSE_LOGPROBS = ("gpt_oss", "deepseek_v3")
PREFILL = {"prefill_step_tokens": 16}


@functools.cache
def rows_of(arch, *flags):
    """Rows of all kinds, and what one process answers to them."""
    model = support.model(arch, *flags)
    rows = some_rows(5, random.Random(3))
    rows[1]["request"]["body"] |= {"temperature": 1.0, "top_p": 0.9, "seed": 11}
    rows[2]["request"]["body"] |= {"temperature": 0.7}
    rows.append(completion(5, "night shift"))
    rows.append(chat(6, "夜 🌙", repetition_penalty=1.2, max_tokens=9))
    rows.append(completion(7, "x", n=2))
    if arch not in LOOSE_LOGPROBS:
        rows[3]["request"]["body"]["logprobs"] = 2
    [plain] = support.run(model, [rows[5]], **PREFILL).values()
    rows[5]["request"]["body"]["stop"] = [text(plain)[8:11]]
    return rows, support.run(model, rows, arriving_every=3, max_batch_rows=4, **PREFILL)


class Answers(unittest.TestCase):
    def same(self, got, expected, with_logprobs=True):
        self.assertEqual(set(got), set(expected))
        for row, result in got.items():
            ours, theirs = answer(result), answer(expected[row])
            if not with_logprobs and "choices" in ours:
                for choice in (*ours["choices"], *theirs["choices"]):
                    choice["logprobs"] = None
            self.assertEqual(ours, theirs, row)

    def runs_as_one(self, arch, layers, flags=(), **gang):
        rows, expected = rows_of(arch, *flags)
        with Gang(support.model_directory(arch, *flags), layers, **gang, **PREFILL) as ranks:
            ready = ranks.ready()
            self.assertEqual((ready["model_type"], ready["has_chat_template"]), (arch, True))
            self.assertGreaterEqual(len(ready["canary"]["tokens"]), 1)
            self.assertGreater(ready["canary"]["all_reduce_ms"], 0)
            got = ranks.run(rows, every=3)
            codes = ranks.finish()
            self.assertEqual(set(codes.values()), {0}, {rank: one.log_text() for rank, one in ranks.ranks.items()})
            # A tensor gang adds up in another order, so its probabilities differ in their last bits.
            self.same(got, expected, with_logprobs=layers is not None)
            steps = [ranks[rank].of("step")[-1] for rank in ranks.ranks]
            for step in steps:
                step.pop("peak_memory_bytes")
                self.assertEqual(step, steps[0], "every rank tells its steps")
            for rank in list(ranks.ranks)[1:]:
                self.assertEqual({event["ev"] for event in ranks[rank].seen}, {"hello", "ready", "step", "idle"})

    def test_pipelines(self):
        for arch, shapes in SHAPES.items():
            for shape in shapes if ALL else shapes[:1]:
                with self.subTest(arch=arch, shape=shape):
                    self.runs_as_one(arch, spans(*shape))

    def test_tensor(self):
        for arch in TENSOR:
            with self.subTest(arch=arch):
                self.runs_as_one(arch, None, world_size=2)

    @unittest.skipUnless(ALL, "one of many shapes: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_tensor_three_ways(self):
        for arch in support.ARCHITECTURES:
            with self.subTest(arch=arch):
                self.runs_as_one(arch, None, THREE_WAYS, world_size=3)

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_a_canceled_row_leaves_the_others_as_they_are(self):
        rows, expected = rows_of("llama")
        with Gang(support.model_directory("llama"), spans(2, 2), **PREFILL) as ranks:
            ranks.lead.rows([{**rows[0], "request": completion(99, "long", max_tokens=1500)["request"], "row": 99}, *rows])
            ranks.lead.until("step", lambda event: event["generated_tokens"] > 20)
            ranks.lead.send({"op": "cancel", "rows": [99]})
            ranks.lead.until("cancelled")
            while len(ranks.lead.results()) < len(rows):
                ranks.lead.until("result")
            self.assertEqual(set(ranks.finish().values()), {0})
            self.same(ranks.lead.results(), expected)

    def goes_on_elsewhere(self, arch, sizes, stop, elsewhere):
        """Rows handed back by a gang amid their answers end elsewhere as if nothing had happened."""
        rows, expected = rows_of(arch)
        with Gang(support.model_directory(arch), spans(*sizes), **PREFILL) as ranks:
            ranks.lead.rows(rows)
            ranks.lead.until("step", lambda event: event["generated_tokens"] > 30)
            stop(ranks)
            self.assertEqual(set(ranks.to_the_end().values()), {0})
            first = ranks.lead.results()
            returned = [row for event in ranks.lead.of("returned") for row in event["rows"]]
            held = {}
            for event in ranks.lead.of("checkpoint"):
                for part in event["rows"]:
                    for name in ("tokens", "logprobs"):
                        if name in part:
                            have = held.setdefault(part["row"], {}).get(name, [])
                            held[part["row"]][name] = have[: part["offset"]] + part[name]
        self.assertEqual(sorted([*first, *returned]), sorted(expected))
        self.assertTrue(any(held.get(row, {}).get("tokens") for row in returned))
        second = elsewhere([{**rows[row], "attempt": 2, **held.get(row, {})} for row in returned])
        for result in second.values():
            # Not part of the answer.
            self.assertEqual(result["attempt"], 2)
        self.same({**first, **second}, expected)

    def test_from_a_gang_to_one_process(self):
        self.goes_on_elsewhere(
            "qwen3",
            THREE,
            lambda ranks: ranks.lead.send({"op": "checkpoint"}),
            lambda rows: support.run(support.model("qwen3"), rows, max_batch_rows=4, **PREFILL),
        )

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_from_a_gang_to_another(self):
        def elsewhere(rows):
            with Gang(support.model_directory("glm4_moe"), spans(3, 1), **PREFILL) as ranks:
                return ranks.run(rows)

        # As the agent ends a gang: every rank gets the signal.
        def stop(ranks):
            for worker in ranks.ranks.values():
                worker.process.send_signal(signal.SIGTERM)

        self.goes_on_elsewhere("glm4_moe", TWO, stop, elsewhere)


if __name__ == "__main__":
    unittest.main()
