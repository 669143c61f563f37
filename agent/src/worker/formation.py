"""Brings the ranks of a gang together, before anything is loaded.

Promises: the control channel first, because it is bounded and knows who is missing; then MLX's own group, which must be of
the size and rank that was planned; then an all-reduce of which every rank knows the answer. All of it within
`rendezvous_timeout_ms`: MLX's accept waits for ever (FIELD-NOTES 1), so the limit is kept by another process, which ends
this one. The group is formed before the load, since a connecting ring gives up after about 31 s and loads take minutes.
"""

import os
import subprocess
import sys
import time

import faults
from gang import BACKENDS
from protocol import encode


# A rank whose neighbour does not listen yet tries again after a second, so those that connect first leave the others time to
# listen: a few system calls, on a machine that may be busy.
HEAD_START_S = 0.1


class Formed:
    """A gang that stands: the channel, MLX's group, and how long it took."""

    def __init__(self, gang, link, group, rendezvous_ms, form_ms, all_reduce_ms):
        self.gang = gang
        self.channel = link
        self.group = group
        self.all_reduce_ms = all_reduce_ms
        self.timings = {"rendezvous_ms": rendezvous_ms, "form_ms": form_ms}


def form(gang, link, events):
    """`Formed`; raises `faults.Fatal`. `link` is a channel.Leading or channel.Following."""
    started = time.monotonic()
    until = started + gang.rendezvous_timeout_s
    # Here, so that it is behind all ranks when they meet and they come to MLX's own meeting together.
    import canary

    link.gather(until)
    met = time.monotonic()
    if _comes_second(gang):
        time.sleep(HEAD_START_S)

    # At least a second, however late the last rank came: all of them are there.
    with Limit(max(until - time.monotonic(), 1.0), events, _not_formed(gang)):
        group = _group(gang)
        formed = time.monotonic()
        all_reduce_ms = canary.all_reduce(gang, link, group)
    return Formed(gang, link, group, _ms(met - started), _ms(formed - met), all_reduce_ms)


def _group(gang):
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True, backend=BACKENDS[gang.backend])
    except Exception as error:
        message = f"MLX could not form the {gang.backend} group at rank {gang.rank}: {faults.describe(error)}"
        raise faults.Fatal(faults.classify(error, otherwise=faults.LINK_FAULT), message) from error
    if (group.size(), group.rank()) != (gang.world_size, gang.rank):
        raise faults.Fatal(
            faults.LINK_FAULT,
            f"MLX formed a group in which this is rank {group.rank()} of {group.size()}, and the plan says rank {gang.rank} "
            f"of {gang.world_size}: its environment (MLX_RANK, MLX_HOSTFILE or MLX_IBV_DEVICES) is of another plan",
        )
    return group


def _comes_second(gang):
    """In MLX's ring all ranks but the highest listen before they connect; with JACCL they all connect to rank 0."""
    return not gang.leads if BACKENDS[gang.backend] == "jaccl" else gang.rank == gang.world_size - 1


def _not_formed(gang):
    return (
        f"all {gang.world_size} ranks came to {gang.control_text}, but MLX did not form the {gang.backend} group "
        f"at rank {gang.rank} within {gang.rendezvous_timeout_s:g} s: see whether the addresses and ports (or "
        "devices) given to MLX can be reached from each rank to its neighbours"
    )


class Limit:
    """Ends the process when the block takes longer, whatever it is blocked in; `message` is what it says last.

    `mx.distributed.init` keeps Python's lock while it waits, so no thread of this process runs, no signal handler, and the end of
    stdin is not noticed; sums give it up, but that they do is promised nowhere. So another process watches, which is right for
    both. It is a Python without any library (a few MB while the block takes), holds the event stream, and goes when this process
    says so or is gone.
    """

    def __init__(self, limit_s, events, message):
        line = encode({"ev": "fatal", "class": faults.LINK_FAULT, "message": faults.one_sentence(message)})
        fd = events.fileno()
        arguments = [str(fd), f"{limit_s:.3f}", str(os.getpid()), line.decode()]
        self._command = [sys.executable, "-I", "-S", "-c", _WATCH, *arguments]
        self._fd = fd
        self._process = None

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[self._fd]
        )

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()


# SIGTERM goes to the whole process group, and is of no use to a process in which no handler runs. SIGKILL for the same
# reason; at this point nothing is loaded and no memory wired.
_WATCH = """
import os, select, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
fd, limit_s, watched, line = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if not select.select([0], [], [], limit_s)[0] and os.getppid() == watched:
    if select.select([], [fd], [], 1.0)[1]:
        os.write(fd, line.encode())
    os.kill(watched, signal.SIGKILL)
"""


def _ms(seconds):
    return round(seconds * 1000)
