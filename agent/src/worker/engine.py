"""Continuous batching: rows enter and leave mlx-lm's batch generator between the steps of the others.

Promises: at most `max_batch_rows` rows are in work together, and a place that a row leaves is taken in the same step; a row's
tokens do not depend on the rows beside it; what goes wrong with one row is that row's 500 and nobody else's trouble,
what goes wrong with the model raises out of `step`. Each step writes one event; the work on a token of a row without
stop strings or log-probabilities is one list append.

The generator computes one token ahead while this code runs, so what is done between two steps costs time only where it
takes longer than a step.
"""

import sys
import time
import traceback

import mlx.core as mx

import faults
import response
import sampling
from generator import Generator
from request import Refused
from row import Row
from text import find_stop

# Rows of which only refusals come are answered between two signs of life, so not all at once.
MAX_PREPARED_A_STEP = 64
# Asking the allocator is cheap, but a step of a tiny model is not much more.
MEMORY_INTERVAL_S = 1.0
# Full checkpoints of many long rows are written in events of bearable size.
MAX_CHECKPOINT_TOKENS = 1 << 16


class Engine:
    """The rows of one worker. All methods are called from one thread, between steps."""

    def __init__(self, model, options, events, make_generator=Generator, share=lambda sampler: sampler):
        """At rank 0 of a gang, `make_generator` takes the other ranks along and `share` lets them have what was drawn."""
        self._model = model
        self._options = options
        self._events = events
        self._sampler = sampling.BatchSampler()
        self._rehearsing = False
        self._generator = make_generator(
            model.network,
            self._begin,
            stop_tokens=[[token] for token in sorted(model.eos_tokens)],
            sampler=share(self._sampler),
            completion_batch_size=options.max_batch_rows,
            prefill_batch_size=min(options.prefill_batch_rows, options.max_batch_rows),
            prefill_step_size=options.prefill_step_tokens,
        )
        # Rows as they came, by number.
        self._waiting = {}
        # Rows in the generator by its uid: those with a place, and a few prepared ones for the places that become free.
        self._active = {}
        self._queued = {}
        self.steps = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._peak_memory_bytes = mx.get_peak_memory()
        now = time.monotonic()
        self._memory_due = now + MEMORY_INTERVAL_S
        self._checkpoint_due = now + options.checkpoint_interval_s

    def has_work(self):
        return bool(self._active or self._queued or self._waiting)

    def waiting_rows(self):
        return len(self._waiting) + len(self._queued)

    def add(self, command):
        """Takes a row in, as it stands in a `rows` command. The same attempt again is ignored; a newer one replaces it."""
        row = Row(command)
        held = self._find(row.number)
        if held is not None:
            if held.attempt >= row.attempt:
                return
            self.cancel([row.number])
        self._waiting[row.number] = row

    def cancel(self, numbers):
        """Drops rows, wherever they are; returns the numbers of those that were here."""
        wanted = set(numbers)
        found = [number for number in self._waiting if number in wanted]
        for number in found:
            del self._waiting[number]
        in_generator = [row for row in (*self._queued.values(), *self._active.values()) if row.number in wanted]
        self._remove(in_generator)
        return found + [row.number for row in in_generator]

    def drop_not_begun(self):
        """Forgets the rows of which nothing has been read; returns their numbers."""
        queued = list(self._queued.values())
        self._remove(queued)
        numbers = [row.number for row in queued] + list(self._waiting)
        self._waiting.clear()
        return numbers

    def checkpoint_all(self):
        """Writes everything there is of the rows being generated, from offset 0; returns their numbers."""
        parts, size = [], 0
        for row in self._active.values():
            parts.append(row.checkpoint(0))
            size += len(row.tokens)
            if size >= MAX_CHECKPOINT_TOKENS:
                self._events.send({"ev": "checkpoint", "rows": parts})
                parts, size = [], 0
        if parts:
            self._events.send({"ev": "checkpoint", "rows": parts})
        return [row.number for row in self._active.values()]

    def checkpoint_news(self):
        """Adds an event with the tokens since each row's last checkpoint."""
        parts = []
        for row in self._active.values():
            if len(row.tokens) > row.checkpointed:
                parts.append(row.checkpoint(row.checkpointed))
                row.checkpointed = len(row.tokens)
        if parts:
            self._events.add({"ev": "checkpoint", "rows": parts})

    def close(self):
        """Gives back what the generator holds of the machine (its wired limit)."""
        self._generator.close()

    @property
    def stream(self):
        """Where the generator computes."""
        return self._generator.stream

    def rehearse(self, prompt, max_tokens):
        """The greedy answer to a prompt that is no row's, before any row has come."""
        tokens = []
        self._rehearsing = True
        self._generator.insert([prompt], max_tokens=[max_tokens])
        finished = False
        while not finished:
            for answer in self._generator.next()[1]:
                tokens.append(answer.token)
                finished = answer.finish_reason is not None
        self._rehearsing = False
        return tokens

    def step(self):
        """One step: every row in work gets a token or has a piece of its prompt read; rows leave, others enter."""
        self._queue_ahead()
        if not (self._active or self._queued):
            self._events.flush()
            return
        progressed, responses = self._generator.next()
        phase = "decode"
        if progressed:
            phase = "prefill"
            self._count_read(progressed)
        self._generated_tokens += len(responses)
        active = self._active
        removed = None
        for answer in responses:
            row = active[answer.uid]
            reason = answer.finish_reason
            if reason != "stop":
                row.tokens.append(answer.token)
                if (row.stop_watch is not None or row.entries is not None) and self._ends(row, answer):
                    if reason is None:
                        removed = [row] if removed is None else [*removed, row]
                    else:
                        self._leave(row)
                    continue
            if reason is not None:
                self._leave(row)
                self._finish(row, reason)
        if removed is not None:
            self._remove(removed)
        self.steps += 1
        self._keep_time(phase == "prefill")
        self._events.flush(
            f'{{"ev":"step","n":{self.steps},"phase":"{phase}","active":{len(active)},'
            f'"waiting":{self.waiting_rows()},"prompt_tokens":{self._prompt_tokens},'
            f'"generated_tokens":{self._generated_tokens},"peak_memory_bytes":{self._peak_memory_bytes}}}\n'.encode()
        )

    def _queue_ahead(self):
        """Prepares enough rows for the free places, and one for those to come while the model is busy anyway."""
        if not self._waiting:
            return
        places = self._options.max_batch_rows
        budget = MAX_PREPARED_A_STEP
        if len(self._queued) < places:
            self._prepare_next()
        while self._waiting and budget and len(self._queued) + len(self._active) < places:
            budget -= 1
            self._prepare_next()

    def _prepare_next(self):
        row = self._waiting.pop(next(iter(self._waiting)))
        try:
            reason = row.prepare(self._model, self._options.default_max_tokens, self._options.seed_base)
        except Refused as refusal:
            self._answer(row, refusal.status, response.refused(refusal.message, refusal.param, refusal.code))
        except Exception as error:
            self._fail(row, error)
        else:
            if reason is None:
                self._queue(row)
            else:
                self._finish(row, reason)

    def _queue(self, row):
        [row.uid] = self._generator.insert(
            [row.tokens_to_read()],
            max_tokens=[row.remaining_tokens()],
            logits_processors=[row.processors],
        )
        self._queued[row.uid] = row

    def _begin(self, uids):
        """Called by the generator, amid a step, before it reads the first of these rows' prompts."""
        if self._rehearsing:
            return
        rows = [self._queued.pop(uid) for uid in uids]
        for row in rows:
            self._active[row.uid] = row
            self._sampler.enter(row.uid, row.draw)
        self._events.send({"ev": "started", "rows": [row.number for row in rows]})

    def _count_read(self, progressed):
        for progress in progressed:
            row = self._active[progress.uid]
            read = progress.progress[0]
            self._prompt_tokens += read - row.read_tokens
            row.read_tokens = read

    def _ends(self, row, answer):
        """Does what a token of a row with log-probabilities or stop strings needs. True when the row is answered now."""
        try:
            if row.entries is not None:
                row.entries.append(response.logprob_entry(answer.logprobs, answer.token, row.request.top_logprobs))
            if row.stop_watch is None or not row.stop_watch.add(answer.token) or not row.is_stopped(self._model):
                return False
        except Exception as error:
            self._fail(row, error)
        else:
            self._finish(row, "stop")
        return True

    def _finish(self, row, reason):
        try:
            text = self._model.tokenizer.decode(row.tokens)
            cut_at = find_stop(text, row.request.stops)
            if cut_at >= 0:
                text, reason = text[:cut_at], "stop"
            body = response.completed(row, text, reason, self._model, self._options.job, cut_at if cut_at >= 0 else None)
            self._answer(row, 200, body)
        except Exception as error:
            self._fail(row, error)

    def _fail(self, row, error):
        """The row's own failure. On the log, with its trace: nothing is known about its cause yet."""
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        self._answer(row, 500, response.failed(f"the worker failed on this row: {faults.describe(error)}"))

    def _answer(self, row, status, body):
        answered = status == 200
        self._events.add(
            {
                "ev": "result",
                "row": row.number,
                "attempt": row.attempt,
                "status": status,
                "prompt_tokens": len(row.prompt),
                "completion_tokens": len(row.tokens) if answered else 0,
                "resumed_tokens": row.resumed_tokens if answered else 0,
                "body": body,
            }
        )

    def _remove(self, rows):
        if rows:
            self._generator.remove([row.uid for row in rows])
            for row in rows:
                self._leave(row)

    def _leave(self, row):
        if self._queued.pop(row.uid, None) is None:
            del self._active[row.uid]
            self._sampler.leave(row.uid)

    def _find(self, number):
        if number in self._waiting:
            return self._waiting[number]
        for row in (*self._queued.values(), *self._active.values()):
            if row.number == number:
                return row
        return None

    def _keep_time(self, has_read):
        now = time.monotonic()
        if now >= self._checkpoint_due:
            self._checkpoint_due = now + self._options.checkpoint_interval_s
            self.checkpoint_news()
        # Memory is highest while prompts are read, and those steps are long.
        if has_read or now >= self._memory_due:
            self._memory_due = now + MEMORY_INTERVAL_S
            self._peak_memory_bytes = mx.get_peak_memory()
