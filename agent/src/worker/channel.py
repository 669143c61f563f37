"""The control channel of a gang: from rank 0 to every other rank, one TCP connection each.

Promises: only ranks that know the gang's secret are let in (handshake.py), and strangers disturb nobody; frames arrive
whole, in order and numbered, or the process ends; rank 0 does not wait for the others (a send that cannot be taken for
`SEND_LIMIT_S` ends it); whoever loses a connection ends within `GRACE_S`, even while blocked inside MLX, where nothing
but another thread can notice and nothing but the end of the process can help (FIELD-NOTES 2). What no socket shows — a
stopped process, a black-holed network — is the controller's to see, by missing steps.

A frame is its length, its number and a JSON value; an empty one is the commonest and means "the next step".
"""

import json
import os
import queue
import socket
import struct
import threading
import time

import faults
import handshake

# A step's new prompts, cut by the sender well below (lockstep.MAX_FRAME_TOKENS); a length past this is no frame.
MAX_FRAME_BYTES = 64 << 20
# The others take their frames in microseconds unless they are stuck; ten seconds is a stopped process.
SEND_LIMIT_S = 10
# MLX itself notices most lost peers within 0.3 s and says more (FIELD-NOTES 2); the rest end by this.
GRACE_S = 2.0
# A gang that is given up: how long a rank may end by itself, which it does unless it is blocked inside MLX.
ABANDON_S = 1.0
# How often a rank tries to reach rank 0, which may be started seconds later.
RETRY_S = 0.1
# Frames read ahead of the loop. Rank 0 is two steps ahead of the others at most.
MAX_FRAMES_AHEAD = 16
# Greetings under way at a time; strangers past it wait in the kernel's queue.
MAX_GREETINGS = 32

EXIT_ORDERLY = 0
EXIT_FATAL = 3
_HEAD = struct.Struct(">II")


class Link:
    """One connection: frames out, and a thread that reads the frames that come in."""

    def __init__(self, connection, rank):
        self.rank = rank
        self._connection = connection
        self._sent = self._received = 0
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_LIMIT_S, 0))

    def start(self, deliver, lost):
        """Reads from now on: `deliver(rank, message)` for each frame, `lost(rank)` once at the end; both in the thread."""

        def read():
            try:
                while True:
                    deliver(self.rank, self._receive())
            except (OSError, ValueError):
                lost(self.rank)

        threading.Thread(target=read, name=f"rank {self.rank}", daemon=True).start()

    def send(self, message=None):
        """Sends a frame; raises `faults.Fatal`."""
        body = b"" if message is None else json.dumps(message, separators=(",", ":")).encode()
        try:
            self._connection.sendall(_HEAD.pack(len(body), self._sent & 0xFFFFFFFF) + body)
        except OSError as error:
            stuck = isinstance(error, BlockingIOError)
            what = f"takes nothing since {SEND_LIMIT_S} s" if stuck else f"is gone ({faults.describe(error)})"
            raise faults.Fatal(faults.LINK_FAULT, f"rank {self.rank} of this gang {what}") from error
        self._sent += 1

    def say_last(self, message):
        """Sends a frame after which nothing comes, if the other can still hear it."""
        try:
            self.send(message)
            # Not closed: what was sent would be lost where the other's words lie here unread.
            self._connection.shutdown(socket.SHUT_WR)
        except (faults.Fatal, OSError):
            pass

    def _receive(self):
        length, number = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > MAX_FRAME_BYTES or number != self._received & 0xFFFFFFFF:
            raise ValueError("not a frame, or not the next")
        self._received += 1
        return json.loads(self._exactly(length)) if length else None

    def _exactly(self, count):
        data = bytearray(count)
        view = memoryview(data)
        while view:
            read = self._connection.recv_into(view)
            if not read:
                raise OSError("closed")
            view = view[read:]
        return bytes(data)


class Channel:
    """What both sides share: the messages that came, whether somebody is gone, and the end of the process over it."""

    def __init__(self, gang, events, wake=lambda: None):
        self.gang = gang
        self._events = events
        self._wake = wake
        self._messages = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_FRAMES_AHEAD * gang.world_size)
        # Whether all ranks have come.
        self._met = False
        self._ending = False
        self._gone = None
        # Ranks that have said why they end, in words worth repeating.
        self._reasons = {}
        self._last_words = lambda: None

    def before_the_end(self, last_words):
        """`last_words` is called, from another thread, before a process blocked inside MLX is ended."""
        self._last_words = last_words

    def abandon(self):
        """The gang is given up: this process ends soon, be it blocked or not. May be called in any thread."""
        self._ending = True

        def end():
            time.sleep(ABANDON_S)
            try:
                self._last_words()
            except Exception:
                # The other thread was amid something after all; its last checkpoint stands.
                pass
            os._exit(EXIT_ORDERLY)

        threading.Thread(target=end, name="abandon", daemon=True).start()

    def let_go(self):
        """Nothing that matters is left to be said: whoever is lost from now on is missed by nobody, and ends nothing."""
        self._ending = True

    def check(self):
        """Raises `faults.Fatal` when a member of the gang is gone."""
        if self._gone is not None:
            raise faults.Fatal(self._loss(), self._gone)

    def take(self, wait_s):
        """The next (rank, message), None when there is none within `wait_s`; raises `faults.Fatal`."""
        try:
            item = self._messages.get(wait_s > 0, wait_s)
        except queue.Empty:
            self.check()
            return None
        if item is None:
            self.check()
            return None
        self._room.release()
        return item

    def _deliver(self, rank, message):
        if isinstance(message, dict) and message.get("op") == "fail":
            self._reasons[rank] = faults.one_sentence(str(message.get("why")))
            return
        self._room.acquire()
        self._messages.put((rank, message))

    def _lost(self, rank):
        """The reading thread's last act: it says who is gone, and ends the process if nobody else does."""
        if self._ending:
            self._messages.put(None)
            return
        reason = self._reasons.get(rank)
        gone = f"rank {rank} is gone" if reason is None else f"rank {rank} has ended: {reason}"
        if self._gone is None:
            self._gone = gone
        self._messages.put(None)
        self._wake()
        time.sleep(GRACE_S)
        if not self._ending:
            end_process(self._events, self._loss(), self._gone, self._last_words)

    def _loss(self):
        """The class of a lost rank. Who had come before another gave up waiting says the same as that one."""
        return faults.LINK_FAULT if self._met else faults.APART


class Leading(Channel):
    """Rank 0's end."""

    def __init__(self, gang, events, wake=lambda: None):
        super().__init__(gang, events, wake)
        self._links = {}
        # Ranks that have shown themselves, and the lock around taking a place.
        self._taken = set()
        self._lock = threading.Lock()
        self._refusals = []

    def gather(self, until):
        """Lets the other ranks in; raises `faults.Fatal` when not all have come at `until` (monotonic seconds)."""
        awaited = set(range(1, self.gang.world_size))
        arrived = queue.SimpleQueue()
        greetings = threading.Semaphore(MAX_GREETINGS)
        with _listener(self.gang) as listener:
            while awaited:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    self._give_up(awaited)
                listener.settimeout(min(left_s, RETRY_S))
                try:
                    if greetings.acquire(timeout=RETRY_S):
                        connection, address = listener.accept()
                        threading.Thread(
                            target=self._greet, args=(connection, address[0], awaited, arrived, greetings), daemon=True
                        ).start()
                except TimeoutError:
                    greetings.release()
                while not arrived.empty():
                    rank, connection = arrived.get()
                    self._links[rank] = Link(connection, rank)
                    self._links[rank].start(self._deliver, self._lost)
                    awaited.discard(rank)
                self.check()
        self._met = True
        self.announce({"op": "form"})

    def announce(self, message=None):
        """Sends a frame to every other rank."""
        for link in self._links.values():
            link.send(message)

    def collect(self, kind, limit_s=None):
        """One message of this kind from every other rank, by rank; raises `faults.Fatal`."""
        answers = {}
        until = None if limit_s is None else time.monotonic() + limit_s
        while len(answers) < len(self._links):
            item = self.take(0.5)
            if item is not None and item[1].get("op") == kind:
                answers[item[0]] = item[1]
            elif until is not None and time.monotonic() > until:
                missing = _ranks(set(self._links) - set(answers))
                raise faults.Fatal(faults.LINK_FAULT, f"{missing} did not answer within {limit_s:g} s ({kind})")
        return answers

    def end(self, limit_s):
        """The orderly end: the others finish what was announced and go; waits for that, so long at most."""
        self._ending = True
        self.announce({"op": "end"})
        until = time.monotonic() + limit_s
        ended = set()
        while len(ended) < len(self._links) and (left_s := until - time.monotonic()) > 0:
            try:
                item = self._messages.get(True, left_s)
            except queue.Empty:
                return
            ended.add(item[0] if item else len(ended))

    def fail(self, why):
        """Tells the others why this rank ends, where they can still hear it."""
        self._ending = True
        for link in self._links.values():
            link.say_last({"op": "fail", "why": why})

    def _greet(self, connection, address, awaited, arrived, greetings):
        def is_free(rank):
            with self._lock:
                free = rank in awaited and rank not in self._taken
                self._taken.add(rank)
                return free

        try:
            arrived.put((handshake.admit(connection, self.gang.secret, is_free), connection))
        except (handshake.Refused, OSError) as error:
            self._refusals.append(f"{address}: {faults.describe(error)}")
            del self._refusals[:-3]
            connection.close()
        finally:
            greetings.release()

    def _give_up(self, awaited):
        waited = f"{self.gang.rendezvous_timeout_s:g} s"
        why = f"{_ranks(awaited)} of {self.gang.world_size} did not come to {self.gang.control_text} within {waited}"
        if self._refusals:
            why += f"; turned away: {'; '.join(self._refusals)}"
        self.fail(why)
        raise faults.Fatal(faults.APART, why)


class Following(Channel):
    """The end of every other rank."""

    def __init__(self, gang, events, wake=lambda: None):
        super().__init__(gang, events, wake)
        self._link = None

    def gather(self, until):
        """Joins rank 0 and waits until all have; raises `faults.Fatal`."""
        self._link = Link(self._connect(until), 0)
        self._link.start(self._deliver, self._lost)
        while (item := self.take(0.2)) is None:
            # Rank 0 has its own limit and says who is missing; a little later, so that its words come first.
            if time.monotonic() > until + 1.0:
                raise faults.Fatal(faults.APART, "rank 0 did not say within the limit that all ranks have come")
        if item[1] != {"op": "form"}:
            raise faults.Fatal(faults.LINK_FAULT, "rank 0 said something else than that all ranks have come")
        self._met = True

    def report(self, message):
        """Sends rank 0 a message."""
        self._link.send(message)

    def await_end(self, limit_s):
        """Waits for rank 0's last word, so long at most; where all have been let go, its loss is one, too."""
        try:
            self._messages.get(True, limit_s)
        except queue.Empty:
            pass

    def end(self):
        """Says that all that was announced is done. What happens to the connection from now on is of no account."""
        self._ending = True
        self._link.say_last({"op": "ended"})

    def fail(self, why):
        """Tells rank 0 why this rank ends, where it can still hear it."""
        self._ending = True
        if self._link is not None:
            self._link.say_last({"op": "fail", "why": why})

    def _connect(self, until):
        where = self.gang.control_text
        error = None
        while (left_s := until - time.monotonic()) > 0:
            connection = None
            try:
                connection = socket.create_connection(self.gang.control, timeout=min(left_s, 2.0))
                handshake.join(connection, self.gang.secret, self.gang.rank)
                return connection
            except (handshake.Refused, OSError) as failure:
                if connection is not None:
                    connection.close()
                if getattr(failure, "final", False):
                    message = f"rank {self.gang.rank} cannot join its gang at {where}: {failure}"
                    raise faults.Fatal(faults.LINK_FAULT, message) from failure
                error = failure
            time.sleep(RETRY_S)
        said = "" if error is None else f": {faults.describe(error)}"
        message = f"rank 0 could not be reached at {where} within {self.gang.rendezvous_timeout_s:g} s{said}"
        raise faults.Fatal(faults.APART, message)


def end_process(events, fault, message, last_words=lambda: None):
    """Ends this process from a thread other than the one that is blocked."""
    try:
        last_words()
    except Exception:
        # The other thread was amid something after all; its last checkpoint stands.
        pass
    events.last({"ev": "fatal", "class": fault, "message": faults.one_sentence(message)})
    os._exit(EXIT_FATAL)


def _listener(gang):
    address, port = gang.control
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(2 * MAX_GREETINGS)
    except OSError as error:
        listener.close()
        message = f"rank 0 cannot listen for its gang at {gang.control_text}: {faults.describe(error)}"
        raise faults.Fatal(faults.LINK_FAULT, message) from error
    return listener


def _ranks(ranks):
    """ "rank 1", "ranks 1 and 2", "ranks 1, 2 and 3"."""
    numbers = [str(rank) for rank in sorted(ranks)]
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(numbers[:-1])} and {numbers[-1]}"
