import random
import unittest

import support
from support import answer, chat, completion, run, some_rows, text


def tokens_of(loaded, rows, **changes):
    """Results and checkpoints at the last moment of rows that run undisturbed."""
    events = support.Recorded()
    driven = support.engine(loaded, events, checkpoint_interval_s=0.0, **changes)
    for row in rows:
        driven.add(row)
    while driven.has_work():
        driven.step()
    driven.close()
    joined = {}
    for event in events.of("checkpoint"):
        for part in event["rows"]:
            kept = joined.setdefault(part["row"], {"tokens": [], "logprobs": []})
            assert part["offset"] == len(kept["tokens"]), "checkpoints leave no gap"
            kept["tokens"] += part["tokens"]
            kept["logprobs"] += part.get("logprobs", [])
    return events.results(), joined


def cut(row, joined, at):
    """The row as the controller sends it after an attempt that ended at that token."""
    kept = joined.get(row["row"], {"tokens": [], "logprobs": []})
    logprobs = kept["logprobs"][:at] or None
    return {**row, "attempt": 2, "tokens": kept["tokens"][:at], "logprobs": logprobs}


class Undisturbed(unittest.TestCase):
    def same(self, results, expected):
        self.assertEqual(set(results), set(expected))
        for row, result in results.items():
            self.assertEqual(answer(result), answer(expected[row]))

    def test_greedy_text_is_that_of_mlx_lms_own_generation(self):
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        loaded = support.model()
        rows = some_rows(6, random.Random(1))
        results = run(loaded, rows)
        for row in rows:
            prompt = loaded.tokenizer.encode(row["request"]["body"]["prompt"])
            expected = []
            for token, _ in generate_step(mx.array(prompt), loaded.network, max_tokens=24):
                if int(token) in loaded.eos_tokens:
                    break
                expected.append(int(token))
            self.assertEqual(text(results[row["row"]]), loaded.tokenizer.decode(expected))
            self.assertEqual(results[row["row"]]["completion_tokens"], len(expected))

    def test_a_row_is_the_same_alone_in_a_batch_arriving_late_and_resumed_anywhere(self):
        kinds = ({}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "min_p": 0.01, "top_k": 50, "seed": 3})
        for arch in support.ARCHITECTURES:
            loaded = support.model(arch)
            rng = random.Random(arch)
            rows = some_rows(9, rng)
            for row in rows:
                row["request"]["body"] |= kinds[row["row"] % 3]
            expected, joined = tokens_of(loaded, rows)
            with self.subTest(arch=arch):
                self.same(run(loaded, rows, arriving_every=3), expected)
                for row in rows[:3]:
                    self.same(run(loaded, [row]), {row["row"]: expected[row["row"]]})
                at = [rng.randint(0, expected[row["row"]]["completion_tokens"]) for row in rows]
                resumed = run(loaded, [cut(row, joined, n) for row, n in zip(rows, at)], arriving_every=2)
                self.same(resumed, expected)
                for row, n in zip(rows, at):
                    kept = len(joined.get(row["row"], {"tokens": []})["tokens"][:n])
                    self.assertEqual(resumed[row["row"]]["resumed_tokens"], kept)

    def test_long_prompts_in_pieces_and_more_rows_than_places_change_nothing(self):
        loaded = support.model("qwen3_moe")
        rows = some_rows(12, random.Random(2))
        expected = run(loaded, rows, max_batch_rows=16, prefill_batch_rows=16)
        self.same(run(loaded, rows, max_batch_rows=3, prefill_batch_rows=2, prefill_step_tokens=7), expected)

    def test_log_probabilities_survive_a_resume(self):
        loaded = support.model()
        rows = [
            *some_rows(4, random.Random(4), logprobs=3),
            chat(4, "Hello", logprobs=True, top_logprobs=5, temperature=1.0),
            chat(5, "Hello 🌙", logprobs=True),
        ]
        expected, joined = tokens_of(loaded, rows)
        for at in (1, 9, 23):
            self.same(run(loaded, [cut(row, joined, at) for row in rows]), expected)
        without = [{**cut(row, joined, 9), "logprobs": None} for row in rows]
        results = run(loaded, without)
        self.same(results, expected)
        self.assertEqual({result["resumed_tokens"] for result in results.values()}, {0})


class Answers(unittest.TestCase):
    def test_a_chat_answer_is_in_openais_shape(self):
        result = run(support.model(), [chat(17, "Hello", max_tokens=5)])[17]
        body = result["body"]
        self.assertIsInstance(body.pop("created"), int)
        content = body["choices"][0]["message"].pop("content")
        self.assertIsInstance(content, str)
        self.assertEqual(
            body,
            {
                "id": "chatcmpl-j7-17",
                "object": "chat.completion",
                "model": "llama",
                "choices": [
                    {"index": 0, "message": {"role": "assistant"}, "logprobs": None, "finish_reason": "length"}
                ],
                "usage": {
                    "prompt_tokens": result["prompt_tokens"],
                    "completion_tokens": 5,
                    "total_tokens": result["prompt_tokens"] + 5,
                },
            },
        )
        self.assertEqual((result["status"], result["attempt"], result["resumed_tokens"]), (200, 1, 0))

    def test_the_end_token_is_neither_text_nor_counted(self):
        loaded = support.model()
        eos = min(loaded.eos_tokens)
        row = completion(1, "Hello", max_tokens=9)
        free = text(run(loaded, [row])[1])
        forced = run(loaded, [completion(1, "Hello", max_tokens=9, logit_bias={str(eos): 100})])[1]
        self.assertEqual((text(forced), forced["completion_tokens"]), ("", 0))
        self.assertEqual(forced["body"]["choices"][0]["finish_reason"], "stop")
        self.assertNotEqual(free, "")

    def test_a_stop_string_across_tokens_ends_the_row_there(self):
        loaded = support.model()
        rng = random.Random(5)
        checked = 0
        for row in some_rows(12, rng, max_tokens=40):
            free, joined = tokens_of(loaded, [row])
            whole = text(free[row["row"]])
            start = rng.randrange(3, max(4, len(whole) - 6))
            stop = whole[start : start + 4]
            if "\ufffd" in stop or len(stop) < 4:
                continue
            checked += 1
            stopping = {**row, "request": {**row["request"], "body": {**row["request"]["body"], "stop": ["never", stop]}}}
            results, _ = tokens_of(loaded, [stopping])
            result = results[row["row"]]
            self.assertEqual(text(result), whole[: whole.index(stop)])
            self.assertEqual(result["body"]["choices"][0]["finish_reason"], "stop")
            used = result["completion_tokens"]
            tokens = joined[row["row"]]["tokens"]
            if used < len(tokens):
                self.assertIn(stop, loaded.tokenizer.decode(tokens[:used]))
            self.assertNotIn(stop, loaded.tokenizer.decode(tokens[: used - 1]))
            for at in (1, used // 2, used - 1, used, used + 3):
                resumed = run(loaded, [{**stopping, "tokens": tokens[:at]}])[row["row"]]
                self.assertEqual(answer(resumed), answer(result))
        self.assertGreater(checked, 5)

    def test_a_stop_string_ends_only_its_own_row(self):
        loaded = support.model()
        rows = some_rows(6, random.Random(6))
        expected = run(loaded, rows)
        first = text(expected[2])
        rows[2]["request"]["body"]["stop"] = first[4:6]
        results = run(loaded, rows)
        self.assertEqual(text(results[2]), first[: first.index(first[4:6])])
        for row in (0, 1, 3, 4, 5):
            self.assertEqual(answer(results[row]), answer(expected[row]))

    def test_tokens_that_are_the_whole_answer_need_no_model(self):
        loaded = support.model()
        row = completion(0, "Hello", max_tokens=6)
        expected, _ = tokens_of(loaded, [row])
        events = support.Recorded()
        driven = support.engine(loaded, events)
        tokens = [300, 301, 302, 303, 304, 305]
        eos = min(loaded.eos_tokens)
        driven.add({**row, "tokens": tokens})
        driven.add({**completion(1, "x", max_tokens=50), "tokens": tokens[:2] + [eos, 9, 9]})
        while driven.has_work():
            driven.step()
        self.assertEqual((driven.steps, events.of("started")), (0, []))
        results = events.results()
        self.assertEqual(results[0]["body"]["choices"][0]["finish_reason"], "length")
        self.assertEqual(text(results[1]), loaded.tokenizer.decode(tokens[:2]))
        self.assertEqual(results[1]["body"]["choices"][0]["finish_reason"], "stop")

    def test_log_probabilities_name_the_tokens_of_the_text(self):
        loaded = support.model()
        rows = [
            chat(0, "Hello 🌙", logprobs=True, top_logprobs=3),
            completion(1, "Hello", logprobs=2),
            completion(2, "Hello", logprobs=0),
        ]
        results = run(loaded, rows)
        content = results[0]["body"]["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 24)
        self.assertEqual(b"".join(bytes(entry["bytes"]) for entry in content).decode(errors="replace"), text(results[0]))
        for entry in content:
            top = [other["logprob"] for other in entry["top_logprobs"]]
            self.assertEqual((top[0], top), (entry["logprob"], sorted(top, reverse=True)))
            self.assertEqual((len(top), entry["top_logprobs"][0]["token"]), (3, entry["token"]))
        listed = results[1]["body"]["choices"][0]["logprobs"]
        self.assertEqual({len(listed[key]) for key in listed}, {24})
        for at, token, before in zip(listed["text_offset"], listed["tokens"], ["", *listed["tokens"]]):
            # Tokens that share a character begin where it begins.
            if "\\x" not in before + token:
                self.assertTrue(text(results[1])[at:].startswith(token))
        self.assertIsNone(results[2]["body"]["choices"][0]["logprobs"]["top_logprobs"])

    def test_log_probabilities_of_half_precision_models(self):
        loaded = support.bare_model()
        result = run(loaded, [completion(0, "Hello", logprobs=1)])[0]
        self.assertTrue(all(-20 < value <= 0 for value in result["body"]["choices"][0]["logprobs"]["token_logprobs"]))

    def test_biases_and_penalties_steer(self):
        loaded = support.model()
        # The token for "!": with a bias it is all there is, forbidden it is gone.
        bang = loaded.tokenizer.encode("!", add_special_tokens=False)[0]
        result = run(loaded, [completion(0, "Hello", logit_bias={str(bang): 100}, max_tokens=4)])[0]
        self.assertEqual(text(result), "!!!!")
        plain, firm = (
            run(loaded, [completion(0, "Hello", max_tokens=60, **body)])[0] for body in ({}, {"repetition_penalty": 1.8})
        )
        self.assertNotEqual(text(plain), text(firm))


class Refusals(unittest.TestCase):
    def refused(self, result, status, param, code):
        error = result["body"]["error"]
        self.assertEqual((result["status"], error["param"], error["code"]), (status, param, code), error)
        self.assertEqual((result["completion_tokens"], result["resumed_tokens"]), (0, 0))
        return error["message"]

    def test_a_bad_row_is_answered_and_the_others_go_on(self):
        rows = some_rows(3, random.Random(7))
        expected = run(support.model(), rows)
        bad = [chat(10, "x", tools=[{}]), completion(11, ""), {"row": 12, "attempt": 1, "request": None}]
        results = run(support.model(), [bad[0], *rows, *bad[1:]])
        self.refused(results[10], 400, "tools", "unsupported_parameter")
        self.refused(results[11], 400, "prompt", "invalid_value")
        self.refused(results[12], 400, None, None)
        for row in range(3):
            self.assertEqual(answer(results[row]), answer(expected[row]))

    def test_a_prompt_beyond_the_context_is_refused_and_an_answer_beyond_it_ends_there(self):
        loaded = support.bare_model()
        results = run(loaded, [completion(0, [7] * 100), completion(1, [7] * 90, max_tokens=1000), completion(2, [7] * 99)])
        message = self.refused(results[0], 400, "prompt", "context_length_exceeded")
        self.assertIn("100 tokens", message)
        self.assertLessEqual(results[1]["prompt_tokens"] + results[1]["completion_tokens"], 100)
        self.assertEqual(results[2]["prompt_tokens"], 99)

    def test_a_chat_needs_a_template_that_takes_it(self):
        bare = support.bare_model()
        message = self.refused(run(bare, [chat(0, "hi")])[0], 400, "messages", "no_chat_template")
        self.assertIn("/v1/completions", message)
        loaded = support.model()
        kept = loaded.tokenizer.chat_template
        try:
            loaded.tokenizer.chat_template = "{{ raise_exception('not ' ~ messages[0].content) }}"
            message = self.refused(run(loaded, [chat(0, "this")])[0], 400, "messages", "template_error")
        finally:
            loaded.tokenizer.chat_template = kept
        self.assertIn("not this", message)

    def test_template_arguments_reach_the_template_and_nothing_else(self):
        loaded = support.model()
        kept = loaded.tokenizer.chat_template
        try:
            loaded.tokenizer.chat_template = "{{ tone }}{{ messages[0].content }}"
            brisk = run(loaded, [chat(0, "hi", chat_template_kwargs={"tone": "brisk and brief "})])[0]
            plain = run(loaded, [chat(0, "hi")])[0]
        finally:
            loaded.tokenizer.chat_template = kept
        self.assertGreater(brisk["prompt_tokens"], plain["prompt_tokens"])
        for name in ("chat_template", "tokenize", "return_dict", "tools", "conversation"):
            result = run(loaded, [chat(0, "hi", chat_template_kwargs={name: "x"})])[0]
            self.refused(result, 400, f"chat_template_kwargs.{name}", "unsupported_parameter")

    def test_what_breaks_on_one_row_is_its_own_500(self):
        loaded = support.model()
        rows = some_rows(4, random.Random(8), stop=["never there"])
        expected = run(loaded, rows)
        events = support.Recorded()
        driven = support.engine(loaded, events)
        for row in rows:
            driven.add(row)
        driven.step()

        def broken(_token):
            raise ZeroDivisionError("as a test")

        next(row for row in driven._active.values() if row.number == 2).stop_watch.add = broken
        with support.quiet():
            while driven.has_work():
                driven.step()
        results = events.results()
        self.assertIn("as a test", self.refused(results.pop(2), 500, None, "internal_error"))
        for row, result in results.items():
            self.assertEqual(answer(result), answer(expected[row]))


class Comings(unittest.TestCase):
    def test_a_cancelled_row_vanishes_wherever_it_is(self):
        loaded = support.model()
        rows = some_rows(30, random.Random(9), max_tokens=40)
        expected = run(loaded, rows)
        events = support.Recorded()
        driven = support.engine(loaded, events, max_batch_rows=4)
        for row in rows:
            driven.add(row)
        for _ in range(4):
            driven.step()
        active, queued = ({row.number for row in part.values()} for part in (driven._active, driven._queued))
        waiting = set(driven._waiting)
        self.assertTrue(active and queued and waiting)
        gone = {min(active), min(queued), min(waiting)}
        self.assertEqual(set(driven.cancel([*gone, 999])), gone)
        while driven.has_work():
            driven.step()
        results = events.results()
        self.assertEqual(set(results), set(range(30)) - gone)
        for row, result in results.items():
            self.assertEqual(answer(result), answer(expected[row]))

    def test_the_same_attempt_again_is_one_row_and_a_newer_one_takes_its_place(self):
        loaded = support.model()
        events = support.Recorded()
        driven = support.engine(loaded, events)
        row = completion(5, "Hello", max_tokens=10)
        driven.add(row)
        driven.step()
        driven.add(row)
        driven.add({**row, "attempt": 2})
        while driven.has_work():
            driven.step()
        self.assertEqual([event["attempt"] for event in events.of("result")], [2])

    def test_no_place_is_empty_for_longer_than_in_mlx_lms_own_loop_and_none_is_taken_twice(self):
        from mlx_lm.generate import BatchGenerator

        loaded = support.model()
        rows = some_rows(20, random.Random(11), max_tokens=30)
        prompts = [loaded.tokenizer.encode(row["request"]["body"]["prompt"]) for row in rows]
        sizes = {"completion_batch_size": 3, "prefill_batch_size": 3}
        plain = BatchGenerator(loaded.network, stop_tokens=[[token] for token in loaded.eos_tokens], **sizes)
        plain.insert(prompts, [30] * len(prompts))
        steps = 0
        while any(plain.next()):
            steps += 1
        for prefill_step_tokens in (2048, 5):
            events = support.Recorded()
            changes = {"max_batch_rows": 3, "prefill_batch_rows": 3, "prefill_step_tokens": prefill_step_tokens}
            driven = support.engine(loaded, events, **changes)
            for row in rows:
                driven.add(row)
            while driven.has_work():
                driven.step()
                inside = len(driven._generator._generation_batch) + len(driven._generator._prompt_batch)
                self.assertLessEqual(inside, 3)
                self.assertEqual(inside, len(driven._active))
            if prefill_step_tokens == 2048:
                self.assertEqual(driven.steps, steps)

    def test_steps_tell_what_goes_on(self):
        loaded = support.model()
        events = support.Recorded()
        driven = support.engine(loaded, events, max_batch_rows=2)
        for row in some_rows(5, random.Random(10), max_tokens=8):
            driven.add(row)
        while driven.has_work():
            driven.step()
        steps = events.of("step")
        self.assertEqual([step["n"] for step in steps], list(range(1, len(steps) + 1)))
        self.assertEqual((steps[0]["phase"], steps[0]["active"]), ("prefill", 2))
        self.assertEqual((steps[-1]["active"], steps[-1]["waiting"]), (0, 0))
        self.assertLessEqual(max(step["active"] for step in steps), 2)
        self.assertEqual(steps[-1]["prompt_tokens"], sum(event["prompt_tokens"] for event in events.of("result")))
        self.assertGreaterEqual(steps[-1]["generated_tokens"], sum(e["completion_tokens"] for e in events.of("result")))
        for row in range(5):
            kinds = [e["ev"] for e in events.events if row in (e.get("rows") or []) or e.get("row") == row]
            self.assertEqual(kinds, ["started", "result"])


if __name__ == "__main__":
    unittest.main()
