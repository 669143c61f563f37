import json
import unittest

import support
from request import Refused, parse

VOCAB = 512


def ask(row):
    return parse(row["request"], VOCAB)


def completion(**body):
    return ask(support.completion(0, **{"prompt": "hello", **body}))


def chat(**body):
    return ask(support.chat(0, **{"content": "hello", **body}))


class Accepted(unittest.TestCase):
    def test_what_is_left_out_is_openais_default(self):
        row = support.chat(0, "hi")
        row["request"]["body"] = {"messages": [{"role": "user", "content": "hi"}]}
        request = ask(row)
        self.assertEqual((request.temperature, request.top_p, request.top_k, request.min_p), (1.0, 1.0, 0, 0.0))
        self.assertEqual((request.max_tokens, request.seed, request.stops, request.top_logprobs), (None, None, (), None))

    def test_null_is_as_good_as_absent(self):
        names = ["temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "logit_bias", "max_tokens", "n"]
        request = completion(**dict.fromkeys([*names, "stream", "user", "echo", "tools", "model"]))
        self.assertEqual(request.temperature, 1.0)

    def test_fields_without_effect_and_values_that_ask_for_nothing_pass(self):
        chat(
            user="u", metadata={"a": "b"}, store=True, service_tier="auto", n=1, stream=False, tools=[], tool_choice="none",
            response_format={"type": "text"}, presence_penalty=0, frequency_penalty=0.0, parallel_tool_calls=True,
        )  # fmt: skip
        completion(best_of=1, echo=False, suffix="")

    def test_prompts_come_as_text_as_tokens_and_alone_in_a_list(self):
        self.assertEqual(completion(prompt=["one"]).prompt, "one")
        self.assertEqual(completion(prompt=[1, 2, 3]).prompt, [1, 2, 3])
        self.assertEqual(completion(prompt=[[1, 2]]).prompt, [1, 2])

    def test_messages_come_as_text_and_as_text_parts(self):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "n"}]
        self.assertEqual(
            chat(content=messages).prompt,
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab", "name": "n"}],
        )

    def test_the_newer_name_of_max_tokens_wins(self):
        self.assertEqual(chat(max_tokens=5, max_completion_tokens=7).max_tokens, 7)

    def test_logprobs_of_both_kinds(self):
        self.assertEqual(chat(logprobs=True).top_logprobs, 0)
        self.assertEqual(chat(logprobs=True, top_logprobs=20).top_logprobs, 20)
        self.assertIsNone(chat(logprobs=False).top_logprobs)
        self.assertEqual(completion(logprobs=0).top_logprobs, 0)

    def test_biases_are_by_token(self):
        self.assertEqual(completion(logit_bias={"7": -100, "511": 1.5}).logit_bias, {7: -100.0, 511: 1.5})


class RefusedByName(unittest.TestCase):
    def refused(self, param, make, *, code=None, **body):
        with self.assertRaises(Refused) as caught:
            make(**body)
        refusal = caught.exception
        self.assertEqual((refusal.status, refusal.param), (400, param), refusal.message)
        self.assertIn(param.split("[")[0], refusal.message)
        if code:
            self.assertEqual(refusal.code, code)

    def test_unsupported_fields(self):
        for name, value in {
            "n": 2, "stream": True, "tools": [{"type": "function"}], "functions": [{}], "presence_penalty": 0.5,
            "frequency_penalty": -1, "response_format": {"type": "json_object"}, "reasoning_effort": "high",
            "tool_choice": "required", "audio": {}, "echo": True, "best_of": 3, "suffix": "x",
        }.items():  # fmt: skip
            self.refused(name, chat, code="unsupported_parameter", **{name: value})
            self.refused(name, completion, code="unsupported_parameter", **{name: value})
        self.refused("n", chat, n=True)

    def test_unknown_fields(self):
        self.refused("temprature", chat, code="unknown_parameter", temprature=1)
        self.refused("messages", completion, code="unknown_parameter", messages=[])
        self.refused("prompt", chat, code="unknown_parameter", prompt="x")
        self.refused("top_logprobs", completion, code="unknown_parameter", top_logprobs=1)

    def test_wrong_types(self):
        for name, values in {
            "temperature": ("1", True, [], {}), "top_p": ("x",), "top_k": (1.5, "2"), "min_p": (True,), "seed": (1.0, "1"),
            "max_tokens": ("5", 5.0, True), "stop": (5, {"a": 1}, ["a", 5]), "logit_bias": ([], "x"), "model": (5,),
        }.items():  # fmt: skip
            for value in values:
                self.refused(name, completion, **{name: value})
        self.refused("logprobs", chat, logprobs=5)
        self.refused("logprobs", completion, logprobs=True)
        self.refused("chat_template_kwargs", chat, chat_template_kwargs=[])

    def test_values_out_of_range(self):
        for name, values in {
            "temperature": (-0.1, 2.1, float("nan"), float("inf")), "top_p": (-0.1, 1.1), "min_p": (1.1,), "top_k": (-2,),
            "seed": (2**63, -(2**63) - 1), "max_tokens": (0, -1), "logprobs": (6, -1), "stop": ("", [""], ["a"] * 17),
        }.items():  # fmt: skip
            for value in values:
                self.refused(name, completion, **{name: value})
        self.refused("top_logprobs", chat, logprobs=True, top_logprobs=21)
        self.refused("top_logprobs", chat, top_logprobs=2)
        for bias in ({"512": 1}, {"-1": 1}, {"a": 1}, {"1.5": 1}, {"9" * 5000: 1}):
            self.refused("logit_bias", completion, logit_bias=bias)

    def test_prompts_that_are_none(self):
        for prompt in ("", [], None, 5, ["a", "b"], [[1], [2]], [1, "a"], [512], [-1], [True], [[]], [""]):
            self.refused("prompt", completion, prompt=prompt)

    def test_messages_that_are_none(self):
        def message(**fields):
            return [{"role": "user", "content": "x"}, {"role": "user", "content": "x", **fields}]

        for param, messages in {
            "messages[0]": ["x"],
            "messages[1].role": message(role="tool"),
            "messages[1].content": message(content=None),
            "messages[1].tool_calls": message(tool_calls=[{}]),
            "messages[1].content[0]": message(content=[{"type": "image_url", "image_url": {}}]),
            "messages[1].content[1]": message(content=[{"type": "text", "text": "a"}, "b"]),
        }.items():
            self.refused(param, chat, content=messages)
        row = support.chat(0, "x")
        for messages in ([], None, "x", {}):
            row["request"]["body"]["messages"] = messages
            with self.assertRaises(Refused) as caught:
                ask(row)
            self.assertEqual(caught.exception.param, "messages")

    def test_text_that_has_no_encoding(self):
        half = json.loads('"\\ud800"')
        self.refused("prompt", completion, prompt=half)
        self.refused("messages[0].content", chat, content=half)
        self.refused("stop", chat, stop=[half])
        self.refused(half, chat, **{half: 1})

    def test_rows_that_are_none(self):
        for row in ("x", {}, {"url": "/v1/embeddings", "body": {}}, {"url": "/v1/completions", "body": []}, {"url": ["x"]}):
            with self.assertRaises(Refused):
                parse(row, VOCAB)


if __name__ == "__main__":
    unittest.main()
