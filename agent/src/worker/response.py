"""The bodies a row is answered with, in OpenAI's shape.

Promises: equal tokens make equal bodies but for `created`; usage counts the tokens that were generated for the row, by
whichever attempt, without the token that only says "end" and with those of a stop string that was cut off the text.
"""

import time

from text import Pieces

# What OpenAI writes for "practically never"; JSON has no infinity.
_LEAST_LOGPROB = -9999.0


def completed(row, text, reason, model, job, cut_at=None):
    """The body of a finished row. `cut_at`: where a stop string was cut off `text`, if one was."""
    chat = row.request.chat
    logprobs = None
    if row.entries is not None:
        offsets = _offsets(row, model, cut_at)
        logprobs = _chat_logprobs(row, offsets, model) if chat else _completion_logprobs(row, offsets, model)
    choice = {"index": 0}
    if chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    choice["logprobs"] = logprobs
    choice["finish_reason"] = reason
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{job}-{row.number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model.name,
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(row.prompt),
            "completion_tokens": len(row.tokens),
            "total_tokens": len(row.prompt) + len(row.tokens),
        },
    }


def refused(message, param, code):
    """The body of a row whose request is at fault."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def failed(message):
    """The body of a row that the worker could not do, though nothing is known to be wrong with it."""
    return {"error": {"message": message, "type": "server_error", "param": None, "code": "internal_error"}}


def logprob_entry(logprobs, token, top):
    """What is kept of a step's log-probabilities [vocabulary]: the chosen token's, then (token, its) pairs, likeliest first.

    A list of plain numbers, [chosen, id, logprob, id, logprob, …]: it travels with checkpoints.
    """
    import mlx.core as mx
    import numpy

    if logprobs.dtype != mx.float32:
        # On the CPU: the GPU's queue already holds the next step, and this must not wait for it.
        logprobs = logprobs.astype(mx.float32, stream=mx.cpu)
    values = numpy.array(logprobs)
    entry = [_number(values[token])]
    if top:
        top = min(top, values.size)
        best = numpy.argpartition(-values, top - 1)[:top]
        for negative, index in sorted(zip((-values[best]).tolist(), best.tolist())):
            entry += (index, _number(-negative))
    return entry


def _number(value):
    value = float(value)
    return round(value, 6) if value > _LEAST_LOGPROB else _LEAST_LOGPROB


def _offsets(row, model, cut_at):
    """Where each token's text begins, for the tokens that begin before the cut."""
    pieces, offsets, at = Pieces(model.tokenizer.decode), [], 0
    for token in row.tokens:
        if cut_at is not None and at >= cut_at:
            break
        offsets.append(at)
        at += len(pieces.add(token))
    return offsets


def _chat_logprobs(row, offsets, model):
    def name(token, logprob):
        return {
            "token": model.names.string_of(token),
            "logprob": logprob,
            "bytes": list(model.names.bytes_of(token)),
        }

    content = []
    for token, entry, _ in zip(row.tokens, row.entries, offsets):
        top = [name(other, logprob) for other, logprob in zip(entry[1::2], entry[2::2])]
        content.append({**name(token, entry[0]), "top_logprobs": top})
    return {"content": content}


def _completion_logprobs(row, offsets, model):
    tokens, chosen, top = [], [], []
    for token, entry, _ in zip(row.tokens, row.entries, offsets):
        string = model.names.string_of(token)
        tokens.append(string)
        chosen.append(entry[0])
        alternatives = {}
        for other, logprob in zip(entry[1::2], entry[2::2]):
            # Likeliest first, and two tokens can look alike.
            alternatives.setdefault(model.names.string_of(other), logprob)
        alternatives.setdefault(string, entry[0])
        top.append(alternatives)
    return {
        "tokens": tokens,
        "token_logprobs": chosen,
        "top_logprobs": top if row.request.top_logprobs else None,
        "text_offset": offsets,
    }
