"""The life of every rank of a gang but 0: it does what rank 0 announces, on its own part of the model.

Promises: no requests, tokenizer, text or results; a `step` event after each step and `idle` once a second while rank 0 has
said that there is nothing to do; it ends with exit 0 when rank 0 says so, and soon, with class link_fault, when rank 0 is
gone. `finish`, `checkpoint` and one SIGTERM change nothing here, rank 0 gets them too and ends the gang in order; the end of
stdin and a second SIGTERM end the process at once.
"""

import time

import mlx.core as mx

import canary
import faults
from lockstep import FollowingGenerator
from protocol import MalformedCommand

# How often the agent's commands are looked at while rank 0 says nothing, and an idle rank says that it lives.
IDLE_INTERVAL_S = 1.0
# As the engine does: asking the allocator at each step would show on tiny models.
MEMORY_INTERVAL_S = 1.0


class Follower:
    """Runs from `begin`, the frame with which rank 0 opens the work, to the end of the gang."""

    def __init__(self, formed, network, options, inbox, events):
        self._formed = formed
        self._channel = formed.channel
        self._network = network
        self._options = options
        self._inbox = inbox
        self._events = events
        self._generator = None
        self._idle = False
        self._steps = self._prompt_tokens = self._generated_tokens = 0
        self._read = {}
        self._peak_memory_bytes = 0
        self._memory_due = 0.0

    def rehearse(self):
        """Waits for rank 0 to begin, runs the canary with it; returns what rank 0 says about the model."""
        begin = self._await("begin")
        self._generator = FollowingGenerator(
            self._formed,
            self._network,
            stop_tokens=[[token] for token in begin["stop_tokens"]],
            completion_batch_size=self._options.max_batch_rows,
            prefill_batch_size=min(self._options.prefill_batch_rows, self._options.max_batch_rows),
            prefill_step_size=self._options.prefill_step_tokens,
        )
        tokens = []
        while (message := self._next_message()) is None or message["op"] != "canary":
            tokens += [answer.token for answer in self._advance(message)[1]]
        canary.follow_prompt(self._formed, message, tokens)
        return begin

    def run(self):
        """Serves until rank 0 ends the gang; raises `faults.Fatal`."""
        while True:
            message = self._next_message()
            operation = "step" if message is None else message["op"]
            if operation == "end":
                break
            if operation == "idle":
                self._idle = True
                self._say_idle()
            elif operation == "calls":
                self._generator.carry_out(message["calls"])
            else:
                self._idle = False
                self._count(*self._advance(message))
        # What was computed ahead ends before this process does, so that no other rank sees it break.
        mx.synchronize(self._generator.stream)
        self._channel.end()
        self._generator.close()

    def _advance(self, message):
        """One step, after the calls that came with it."""
        try:
            if message is not None:
                self._generator.carry_out(message["calls"])
                if message["op"] == "calls":
                    return [], []
            return self._generator.next()
        except Exception as error:
            raise faults.Fatal(faults.classify(error), faults.describe(error)) from error

    def _count(self, progressed, responses):
        self._steps += 1
        self._generated_tokens += len(responses)
        for progress in progressed:
            read = progress.progress[0]
            self._prompt_tokens += read - self._read.pop(progress.uid, 0)
            if not progress.end_of_prompt:
                self._read[progress.uid] = read
        now = time.monotonic()
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_INTERVAL_S
            self._peak_memory_bytes = mx.get_peak_memory()
        waiting, active = self._generator.row_counts()
        self._events.flush(
            f'{{"ev":"step","n":{self._steps},"phase":"{"prefill" if progressed else "decode"}","active":{active},'
            f'"waiting":{waiting},"prompt_tokens":{self._prompt_tokens},"generated_tokens":{self._generated_tokens},'
            f'"peak_memory_bytes":{self._peak_memory_bytes}}}\n'.encode()
        )

    def _next_message(self):
        """Rank 0's next frame: None is a step with nothing new."""
        while True:
            item = self._channel.take(0) or self._channel.take(IDLE_INTERVAL_S)
            self._refuse_rows()
            if item is not None:
                return item[1]
            if self._idle:
                self._say_idle()

    def _await(self, operation):
        message = self._next_message()
        if message is None or message["op"] != operation:
            raise faults.Fatal(faults.LINK_FAULT, f'rank 0 did not say "{operation}" when it should have')
        return message

    def _say_idle(self):
        self._events.send({"ev": "idle", "n": self._steps})

    def _refuse_rows(self):
        while (command := self._inbox.take(0)) is not None:
            if command["op"] not in ("finish", "checkpoint"):
                raise MalformedCommand(f'"{command["op"]}" is for rank 0, and this is rank {self._formed.gang.rank}')
