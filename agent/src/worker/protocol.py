"""The line protocol between agent and worker: compact JSON, one object a line; commands in, events out.

Promises: an event is written whole or the process ends; whatever a row holds (lone surrogates, NUL, numbers of any
length, lists of any depth) neither stops a line from being read nor makes a line that is not JSON in UTF-8; what has
been read and not yet taken is bounded; when the agent is gone, the process ends at once, whatever it was doing.
"""

import json
import os
import queue
import select
import threading

# The agent's messages are a few MiB; a line past this is not from it.
MAX_LINE_BYTES = 64 << 20
# Lines read ahead of the loop, each up to a few MiB: enough that the loop never waits for the reader.
MAX_LINES_AHEAD = 16
# Deeper than any sensible request; Python's parser gives up at about ten times this.
MAX_DEPTH = 64
# How often a reader that waits for room looks whether the agent still lives.
ROOM_CHECK_S = 0.2

# For another thread's last event to be written, or the pipe to have room: the agent reads at once or is gone.
LAST_WAIT_S = 1.0

_READ_BYTES = 1 << 18


class MalformedCommand(Exception):
    """A line that is no command. It means that agent and worker do not fit together: the worker cannot go on."""


def encode(event):
    """The line of an event. Characters that UTF-8 cannot carry become '?'."""
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def decode(line):
    """The object on a line, a JSON value of which parts nested too deep are replaced by the string "…"."""
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (RecursionError, ValueError):
        # Lists of thousands of levels, or integers of thousands of digits, which Python refuses to convert.
        return json.loads(_shallow(line), parse_int=_integer)


def _integer(digits):
    return int(digits) if len(digits) <= 40 else float("inf")


def _shallow(line):
    """The line with everything nested deeper than MAX_DEPTH replaced by a string."""
    kept = bytearray()
    depth, in_string, escaped = 0, False, False
    for byte in line:
        if depth <= MAX_DEPTH:
            kept.append(byte)
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept[-1:] = b'"\xe2\x80\xa6"'
        elif byte in b"]}":
            depth -= 1
    return bytes(kept)


class Events:
    """The worker's side of the event stream. Used from one thread, but for `last`."""

    def __init__(self, fd):
        self._fd = fd
        self._pending = []
        self._ended = threading.Lock()

    def fileno(self):
        return self._fd

    def add(self, event):
        """Writes the event with the next flush."""
        self._pending.append(encode(event))

    def flush(self, last=b""):
        """Writes what was added, and the finished line `last`, in one go where the pipe takes it."""
        if self._pending:
            self._pending.append(last)
            last = b"".join(self._pending)
            self._pending.clear()
        if not last:
            return
        try:
            written = os.write(self._fd, last)
            while written < len(last):
                last = last[written:]
                written = os.write(self._fd, last)
        except BrokenPipeError:
            os._exit(0)

    def send(self, event):
        """Writes the event now."""
        self.add(event)
        self.flush()

    def last(self, event):
        """Writes the event as the last of all, from any thread: only the first of these calls writes anything.

        A thread that calls this does so because the one that writes is blocked. Should it be blocked in writing, because
        nobody reads, then nobody would read this either.
        """
        if not self._ended.acquire(timeout=LAST_WAIT_S):
            return
        if select.select([], [self._fd], [], LAST_WAIT_S)[1]:
            self.send(event)


class Inbox:
    """Commands from the agent, read by a thread of its own so that a long step cannot hide that the agent has gone."""

    def __init__(self, fd, agent_gone=lambda: os._exit(0)):
        self._fd = fd
        self._agent_gone = agent_gone
        # What is done about "abandon", in the reading thread: the other one may be blocked for good.
        self.abandoned = lambda: None
        # Unbounded itself, because a signal handler must be able to put into it; `_room` is the bound.
        self._items = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_LINES_AHEAD)

    def start(self):
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def take(self, wait_s):
        """The next command, or None when there is none within `wait_s` seconds (0: look only) or when woken."""
        try:
            item = self._items.get(wait_s > 0, wait_s)
        except queue.Empty:
            return None
        if item is None:
            return None
        self._room.release()
        if isinstance(item, Exception):
            raise item
        return item

    def wake(self):
        """Makes a waiting `take` return. May be called in a signal handler."""
        self._items.put(None)

    def _read(self):
        parts, size = [], 0
        while True:
            try:
                chunk = os.read(self._fd, _READ_BYTES)
            except OSError:
                chunk = b""
            if not chunk:
                self._agent_gone()
                return
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                parts.append(line)
                command = _command(b"".join(parts))
                if isinstance(command, dict) and command["op"] == "abandon":
                    self.abandoned()
                else:
                    self._put(command)
                parts, size = [], 0
            if rest:
                parts.append(rest)
                size += len(rest)
            if size > MAX_LINE_BYTES:
                self._put(MalformedCommand(f"a command line is longer than {MAX_LINE_BYTES} bytes"))
                parts, size = [], 0

    def _put(self, item):
        if item is None:
            return
        while not self._room.acquire(timeout=ROOM_CHECK_S):
            if _hung_up(self._fd):
                self._agent_gone()
        self._items.put(item)


def _command(line):
    if not line.strip():
        return None
    try:
        command = decode(line)
    except (ValueError, RecursionError) as error:
        return MalformedCommand(f"a command line is not JSON: {error}")
    if not isinstance(command, dict) or not isinstance(command.get("op"), str):
        return MalformedCommand('a command line is not an object with an "op"')
    return command


def _hung_up(fd):
    poll = select.poll()
    poll.register(fd, 0)
    return any(flags & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, flags in poll.poll(0))
