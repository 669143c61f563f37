"""The worker's life: commands in, steps between them, an orderly end.

Promises: commands take effect at step boundaries, in the order they came; an idle worker waits without turning, and says
so once a second; after `finish`, `checkpoint` or SIGTERM every row that came in has a result or is named in `returned`,
and the process exits 0.

Rank 0 of a gang is a worker like any other (leader.py adds to it); the other ranks do as it does (follower.py).
"""

from dataclasses import dataclass

import faults
from gang import Canary, Gang, parse_canary, parse_gang
from protocol import MalformedCommand

PROTOCOL = 1
# How often an idle worker says that it lives.
IDLE_INTERVAL_S = 1.0
# Rows taken in and not begun. The controller sends a little ahead of need, far fewer than this; past it, commands wait in
# the pipe, so that no sender can fill the memory.
MAX_WAITING_ROWS = 4096


@dataclass(frozen=True)
class Options:
    """The `init` command."""

    model: str
    max_batch_rows: int
    prefill_batch_rows: int
    prefill_step_tokens: int
    checkpoint_interval_s: float
    default_max_tokens: int
    job: str
    seed_base: str
    # None for an independent worker.
    gang: Gang | None = None
    # What an independent worker answers before it is ready, so that a gang's answer can be held against it.
    canary: Canary | None = None


def parse_init(command):
    """`Options` of an `init` command; raises `MalformedCommand`."""
    if command.get("op") != "init":
        raise MalformedCommand(f'the first command must be "init", not "{command.get("op")}"')
    if command.get("protocol") != PROTOCOL:
        raise MalformedCommand(f"this worker speaks protocol {PROTOCOL}, not {command.get('protocol')!r}")

    def count(name, least=1):
        value = command.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MalformedCommand(f'"{name}" of init must be an integer of at least {least}')
        return value

    def text(name):
        value = command.get(name)
        if not isinstance(value, str) or not value:
            raise MalformedCommand(f'"{name}" of init must be a string')
        return value

    return Options(
        model=text("model"),
        max_batch_rows=count("max_batch_rows"),
        prefill_batch_rows=count("prefill_batch_rows"),
        prefill_step_tokens=count("prefill_step_tokens"),
        checkpoint_interval_s=count("checkpoint_interval_ms") / 1000,
        default_max_tokens=count("default_max_tokens"),
        job=text("job"),
        seed_base=text("seed_base"),
        gang=parse_gang(command),
        canary=parse_canary(command.get("canary")),
    )


class Worker:
    """Runs the engine until it is told to end. `terminated` says whether SIGTERM has come."""

    def __init__(self, engine, inbox, events, terminated):
        self._engine = engine
        self._inbox = inbox
        self._events = events
        self._terminated = terminated
        self._finishing = False
        self._checkpointing = False

    def run(self):
        """Serves until the end that was asked for; raises `faults.Fatal` where there is no going on."""
        while True:
            self._take_commands()
            if self._checkpointing or self._terminated():
                self._hand_back()
                return
            if self._engine.has_work():
                self._step()
            elif self._finishing:
                return

    def _take_commands(self):
        """Carries out what has come; waits for something to come when there is nothing to do."""
        wait_s = 0
        if not (self._engine.has_work() or self._finishing or self._terminated()):
            self._events.send({"ev": "idle", "n": self._engine.steps})
            wait_s = IDLE_INTERVAL_S
        while self._engine.waiting_rows() < MAX_WAITING_ROWS:
            command = self._inbox.take(wait_s)
            if command is None:
                return
            self._carry_out(command)
            wait_s = 0

    def _carry_out(self, command):
        operation = command["op"]
        try:
            if operation == "rows":
                self._take_in(command["rows"])
            elif operation == "cancel":
                if cancelled := self._engine.cancel(command["rows"]):
                    self._events.send({"ev": "cancelled", "rows": cancelled})
            elif operation == "finish":
                self._finishing = True
                self._return(self._engine.drop_not_begun())
            elif operation == "checkpoint":
                self._checkpointing = True
            else:
                raise MalformedCommand(f'unknown command "{operation}"')
        except (KeyError, TypeError) as error:
            raise MalformedCommand(f'the command "{operation}" lacks its shape: {faults.describe(error)}') from error

    def _take_in(self, rows):
        if self._finishing:
            self._return([row["row"] for row in rows])
            return
        for row in rows:
            self._engine.add(row)

    def _step(self):
        try:
            self._engine.step()
        except Exception as error:
            # The tokens so far are plain numbers, intact whatever became of the device.
            self._engine.checkpoint_news()
            self._events.flush()
            raise faults.Fatal(faults.classify(error), faults.describe(error)) from error

    def _hand_back(self):
        """Everything unfinished goes back to the agent: tokens first, then the names of the rows."""
        numbers = self._engine.checkpoint_all() + self._engine.drop_not_begun()
        while (command := self._inbox.take(0)) is not None:
            if command["op"] == "rows":
                numbers += [row["row"] for row in command["rows"]]
        self._return(numbers)

    def _return(self, numbers):
        if numbers:
            self._events.send({"ev": "returned", "rows": numbers})
