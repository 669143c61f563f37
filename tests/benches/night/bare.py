"""The measure of supervision: the same mlx-lm calls on the same rows without any of Nightshift around them.

    bare.py MODEL INPUT.jsonl BATCH [--single]

Prints one JSON line a finished row: {"at": seconds, "tokens": N, "text": "…"}. With --single, one row after the other in
place of continuous batching.
"""

import json
import sys
import time

import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import greedy_sampler

PREFILL_STEP_TOKENS = 2048


def rows(path, tokenizer):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            body = json.loads(line)["body"]
            yield tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True), body["max_tokens"]


def finished(out, tokens, text):
    out.append({"at": time.monotonic(), "tokens": tokens, "text": text})


def batched(model, tokenizer, prompts, batch):
    out = []
    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in sorted(tokenizer.eos_token_ids)],
        sampler=greedy_sampler,
        completion_batch_size=batch,
        prefill_batch_size=batch,
        prefill_step_size=PREFILL_STEP_TOKENS,
    )
    waiting = iter(prompts)
    active = {}

    def fill():
        entering = []
        while len(active) + len(entering) < batch:
            row = next(waiting, None)
            if row is None:
                break
            entering.append(row)
        if entering:
            uids = generator.insert(
                [prompt for prompt, _ in entering],
                max_tokens=[most for _, most in entering],
            )
            for uid in uids:
                active[uid] = []

    fill()
    while active:
        _, responses = generator.next()
        for answer in responses:
            tokens = active[answer.uid]
            if answer.finish_reason != "stop":
                tokens.append(answer.token)
            if answer.finish_reason is not None:
                del active[answer.uid]
                finished(out, len(tokens), tokenizer.decode(tokens))
        fill()
    generator.close()
    return out


def single(model, tokenizer, prompts):
    out = []
    for prompt, most in prompts:
        tokens, text = 0, ""
        for answer in stream_generate(model, tokenizer, prompt, max_tokens=most, prefill_step_size=PREFILL_STEP_TOKENS):
            tokens = answer.generation_tokens
            text += answer.text
        finished(out, tokens, text)
    return out


def main():
    path, source, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model, tokenizer = load(path)
    mx.eval(model.parameters())
    prompts = list(rows(source, tokenizer))
    done = single(model, tokenizer, prompts) if "--single" in sys.argv else batched(model, tokenizer, prompts, batch)
    for row in done:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
