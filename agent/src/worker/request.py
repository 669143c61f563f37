"""A row's request, checked: an OpenAI body becomes a `Request`, or a `Refused` that names the field at fault.

Promises: nothing is silently left out of account. A field either means what it means at OpenAI, or has no effect on the
answer there either (`user`, `metadata`, …), or is refused by name unless its value asks for nothing (`n: 1`,
`stream: false`, `tools: []`). A null is as good as an absent field. Defaults are OpenAI's: temperature 1, top_p 1.
"""

import math
from dataclasses import dataclass, field

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"

# OpenAI allows 4; more cost nothing.
MAX_STOPS = 16
MAX_BIASED_TOKENS = 1024

_COMMON = {
    "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs",
    "logit_bias", "repetition_penalty",
}  # fmt: skip
_CHAT = _COMMON | {"messages", "top_logprobs", "chat_template_kwargs"}
_COMPLETIONS = _COMMON | {"prompt"}

# They steer billing, caching and abuse reports, never the answer.
_WITHOUT_EFFECT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip

# Known to OpenAI and not to us, with the values that ask for nothing.
_UNSUPPORTED = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "stream_options": (),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refused(Exception):
    """The row gets `status` and an error body; the others go on."""

    def __init__(self, message, param=None, code=None, status=400):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Request:
    """What a row asks for, with every default filled in except `max_tokens` and `seed`, which the job decides."""

    chat: bool
    # Messages for a chat; a text or token ids for a completion.
    prompt: object
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    # 0: not limited.
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stops: tuple = ()
    # None: no logprobs wanted; otherwise how many alternatives besides the chosen token.
    top_logprobs: int | None = None
    logit_bias: dict = field(default_factory=dict)
    template_arguments: dict = field(default_factory=dict)


def parse(row, vocab_size):
    """The `Request` of a batch line {"custom_id","method","url","body"}; raises `Refused`."""
    if not isinstance(row, dict):
        raise Refused("the row is not a JSON object")
    url, body = row.get("url"), row.get("body")
    if url not in (CHAT_URL, COMPLETIONS_URL):
        raise Refused(f'"url" must be {CHAT_URL} or {COMPLETIONS_URL}', "url", "invalid_url")
    if not isinstance(body, dict):
        raise Refused('"body" must be an object', "body", "invalid_type")
    chat = url == CHAT_URL
    _refuse_unknown(body, _CHAT if chat else _COMPLETIONS)
    if body.get("model") is not None and not isinstance(body["model"], str):
        raise _wrong("model", "a string")
    return Request(
        chat=chat,
        prompt=_messages(body) if chat else _prompt(body, vocab_size),
        max_tokens=_max_tokens(body),
        temperature=_number(body, "temperature", 0, 2, 1.0),
        top_p=_number(body, "top_p", 0, 1, 1.0),
        top_k=max(0, _integer(body, "top_k", -1, 2**31, 0)),
        min_p=_number(body, "min_p", 0, 1, 0.0),
        repetition_penalty=_number(body, "repetition_penalty", 0.01, 100, 1.0),
        seed=_integer(body, "seed", -(2**63), 2**63 - 1, None),
        stops=_stops(body),
        top_logprobs=_chat_logprobs(body) if chat else _integer(body, "logprobs", 0, 5, None),
        logit_bias=_logit_bias(body, vocab_size),
        template_arguments=_object(body, "chat_template_kwargs"),
    )


def _refuse_unknown(body, known):
    for name, value in body.items():
        if name in known or name in _WITHOUT_EFFECT:
            continue
        if name not in _UNSUPPORTED:
            raise Refused(f'unknown field "{name}"', name, "unknown_parameter")
        if value is None or any(_same(value, harmless) for harmless in _UNSUPPORTED[name]):
            continue
        raise Refused(f'"{name}" is not supported with this value; leave it out', name, "unsupported_parameter")


def _same(value, harmless):
    # True == 1 in Python, but not in JSON.
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _wrong(name, expected):
    return Refused(f'"{name}" must be {expected}', name, "invalid_type")


def _number(body, name, low, high, default):
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(name, "a number")
    if not low <= value <= high or not math.isfinite(value):
        raise Refused(f'"{name}" must be between {low} and {high}', name, "invalid_value")
    return float(value)


def _integer(body, name, low, high, default):
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "an integer")
    if not low <= value <= high:
        raise Refused(f'"{name}" must be between {low} and {high}', name, "invalid_value")
    return value


def _object(body, name):
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object")
    return value


def _text(value, name):
    """The string, if it is one that has an encoding: JSON can spell lone surrogates, tokenizers cannot read them."""
    if not isinstance(value, str):
        raise _wrong(name, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f'"{name}" holds half of a surrogate pair', name, "invalid_value") from None
    return value


def _max_tokens(body):
    # The newer name wins, as at OpenAI.
    old = _integer(body, "max_tokens", 1, 2**31, None)
    new = _integer(body, "max_completion_tokens", 1, 2**31, None)
    return old if new is None else new


def _stops(body):
    value = body.get("stop")
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise _wrong("stop", "a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise Refused(f'"stop" may hold at most {MAX_STOPS} strings', "stop", "invalid_value")
    for stop in stops:
        if not _text(stop, "stop"):
            raise Refused('"stop" must not hold an empty string', "stop", "invalid_value")
    return tuple(stops)


def _chat_logprobs(body):
    wanted = body.get("logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise _wrong("logprobs", "true or false")
    top = _integer(body, "top_logprobs", 0, 20, None)
    if top is not None and not wanted:
        raise Refused('"top_logprobs" needs "logprobs": true', "top_logprobs", "invalid_value")
    return (top or 0) if wanted else None


def _logit_bias(body, vocab_size):
    bias = _object(body, "logit_bias")
    if len(bias) > MAX_BIASED_TOKENS:
        raise Refused(f'"logit_bias" may hold at most {MAX_BIASED_TOKENS} tokens', "logit_bias", "invalid_value")
    checked = {}
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) < 12 and int(token) < vocab_size):
            raise Refused(f'"logit_bias" must map token ids below {vocab_size}', "logit_bias", "invalid_value")
        value = _number(bias, token, -100, 100, 0.0)
        checked[int(token)] = value
    return checked


def _prompt(body, vocab_size):
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        if not prompt:
            raise Refused('"prompt" is empty', "prompt", "invalid_value")
        return _text(prompt, "prompt")
    if not isinstance(prompt, list):
        raise _wrong("prompt", "a string or a list of token ids")
    if not prompt:
        raise Refused('"prompt" is empty', "prompt", "invalid_value")
    if any(isinstance(part, (str, list)) for part in prompt):
        raise Refused('"prompt" must be one prompt: a row has one answer', "prompt", "invalid_value")
    if any(isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size for token in prompt):
        raise Refused(f'"prompt" must hold token ids below {vocab_size}', "prompt", "invalid_value")
    return prompt


def _messages(body):
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise _wrong("messages", "a list of messages")
    if not messages:
        raise Refused('"messages" is empty', "messages", "invalid_value")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message, name):
    if not isinstance(message, dict):
        raise _wrong(name, "an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        allowed = ", ".join(_ROLES)
        raise Refused(f'"{name}.role" must be one of {allowed}', f"{name}.role", "invalid_value")
    # Templates know "system"; many drop a "developer" message without a word.
    checked = {"role": _ROLES[role], "content": _content(message.get("content"), f"{name}.content")}
    for key, value in message.items():
        if key in checked or value is None:
            continue
        if key not in ("name", "reasoning_content"):
            raise Refused(f'"{name}.{key}" is not supported', f"{name}.{key}", "unsupported_parameter")
        checked[key] = _text(value, f"{name}.{key}")
    return checked


def _content(content, name):
    if isinstance(content, str):
        return _text(content, name)
    if not isinstance(content, list):
        raise _wrong(name, "a string or a list of text parts")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or set(part) - {"type", "text"}:
            at = f"{name}[{index}]"
            raise Refused(f'"{at}" is not a text part; only text is supported', at, "unsupported_parameter")
        texts.append(_text(part.get("text"), f"{name}[{index}].text"))
    return "".join(texts)
