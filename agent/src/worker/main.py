"""A worker process: one MLX model answering rows of one job. Started by the agent, spoken to over stdin and stdout.

Promises: stdout carries events and nothing else, whatever libraries print; the process ends by itself when its stdin
does (exit 0), when it is told to (0), and with a `fatal` event (exit 3) when it cannot go on; it never lingers at exit.
An independent worker and a rank of a gang differ in what `init` says; one that only tries a link is told that instead
(link_test.py).
"""

import os
import sys


def claim_streams():
    """(fd to read commands from, fd to write events to); what others read is empty, what they print goes to stderr."""
    commands = os.dup(0)
    events = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, events


# Before any other import: a library may print while it is imported.
if __name__ == "__main__":
    COMMANDS, EVENTS = claim_streams()

import faulthandler
import gc
import signal
import time
import traceback

import faults
import worker
from protocol import Events, Inbox, MalformedCommand

EXIT_ORDERLY = 0
EXIT_FATAL = 3


class Termination:
    """Whether SIGTERM has come. Until there is anything to hand back it ends the process at once, be it amid a download.

    SIGINT is ignored: a terminal's Ctrl-C reaches the agent, which decides. A rank that waits for rank 0 to end it can be
    ended by a second SIGTERM.
    """

    def __init__(self, inbox):
        self.gently = False
        self.at_second = False
        self._asked = False
        self._inbox = inbox
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __call__(self):
        return self._asked

    def _handle(self, _number, _frame):
        if not self.gently or (self.at_second and self._asked):
            os._exit(EXIT_ORDERLY)
        self._asked = True
        self._inbox.wake()


def serve(inbox, events, terminated):
    """From the first command to the orderly end; raises `faults.Fatal`."""
    events.send({"ev": "hello", "protocol": worker.PROTOCOL, "pid": os.getpid(), **_versions()})
    while (command := inbox.take(worker.IDLE_INTERVAL_S)) is None:
        pass
    if command.get("op") == "test_link":
        # Late, as everything that imports MLX.
        import link_test

        link_test.run(command, events, inbox.wake)
        return
    options = worker.parse_init(command)
    if options.gang is not None:
        _serve_gang(options, inbox, events, terminated)
        return
    engine = _load(options, events, terminated)
    worker.Worker(engine, inbox, events, terminated).run()
    engine.close()


def _load(options, events, terminated):
    """The engine around the loaded model."""
    started = time.monotonic()
    # Late: they import MLX, which takes seconds, and the agent wants to hear that the process has started.
    import loader

    model = loader.load(options.model)
    terminated.gently = True
    from engine import Engine

    engine = Engine(model, options, events)
    load_ms = _ms_since(started)
    news = {}
    if options.canary is not None:
        import canary

        news["canary"] = {"tokens": canary.answer_alone(engine, model, options.canary)}
    _ready(events, load_ms, model.has_chat_template, model.model_type, news)
    return engine


def _serve_gang(options, inbox, events, terminated):
    """A rank's life: meet, load, try, serve."""
    import channel
    import formation

    gang = options.gang
    link = (channel.Leading if gang.leads else channel.Following)(gang, events, inbox.wake)
    inbox.abandoned = link.abandon
    try:
        formed = formation.form(gang, link, events)
        (_lead if gang.leads else _follow)(formed, options, inbox, events, terminated)
    except BaseException as error:
        link.fail(_fatal_event(error)["message"])
        raise


def _lead(formed, options, inbox, events, terminated):
    started = time.monotonic()
    from functools import partial

    import canary
    import loader
    import lockstep
    from engine import Engine
    from leader import Leader

    model = loader.load(options.model, formed)
    terminated.gently = True
    engine = Engine(
        model,
        options,
        events,
        partial(lockstep.LeadingGenerator, formed.channel),
        partial(lockstep.Lead, formed=formed),
    )
    load_ms = _ms_since(started)
    # Each rank has its own disk; the agent's patience for a load is the limit, not ours.
    formed.channel.collect("loaded")
    tried = time.monotonic()
    formed.channel.announce(
        {"op": "begin", "stop_tokens": sorted(model.eos_tokens), "has_chat_template": model.has_chat_template}
    )
    tokens = canary.lead_prompt(formed, engine, model)
    news = {"canary": {"tokens": tokens, "all_reduce_ms": formed.all_reduce_ms, "prompt_ms": _ms_since(tried)}}
    _ready(events, load_ms, model.has_chat_template, model.model_type, {**news, **formed.timings})
    Leader(engine, inbox, events, terminated, formed).run()
    engine.close()


def _follow(formed, options, inbox, events, terminated):
    started = time.monotonic()
    import loader
    from follower import Follower

    network, model_type = loader.load_part(options.model, formed)
    terminated.gently = terminated.at_second = True
    load_ms = _ms_since(started)
    formed.channel.report({"op": "loaded"})
    follower = Follower(formed, network, options, inbox, events)
    begin = follower.rehearse()
    _ready(events, load_ms, begin["has_chat_template"], model_type, formed.timings)
    follower.run()


def _ready(events, load_ms, has_chat_template, model_type, news):
    import mlx.core as mx

    # What is alive now stays alive: without it every full collection walks a million objects of the libraries.
    gc.collect()
    gc.freeze()
    events.send(
        {
            "ev": "ready",
            "load_ms": load_ms,
            "peak_memory_bytes": mx.get_peak_memory(),
            "has_chat_template": has_chat_template,
            "model_type": model_type,
            **news,
        }
    )


def _ms_since(started):
    return round((time.monotonic() - started) * 1000)


def _versions():
    from importlib import metadata

    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "missing"

    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, "mlx": version("mlx"), "mlx_lm": version("mlx-lm")}


def main():
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Where it stands, when the agent asks: written by a handler in C, so that it works while the model hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    events = Events(EVENTS)
    inbox = Inbox(COMMANDS)
    terminated = Termination(inbox)
    inbox.start()
    try:
        serve(inbox, events, terminated)
        code = EXIT_ORDERLY
    except BaseException as error:
        traceback.print_exc()
        events.last(_fatal_event(error))
        code = EXIT_FATAL
    sys.stderr.flush()
    # Not sys.exit: threads of libraries, and MLX's own teardown, could keep the process.
    os._exit(code)


def _fatal_event(error):
    if isinstance(error, faults.Fatal):
        message = error.message
    elif isinstance(error, MalformedCommand):
        message = faults.one_sentence(f"the agent sent something this worker does not understand: {error}")
    else:
        message = faults.describe(error)
    return {"ev": "fatal", "class": faults.classify(error), "message": message}


if __name__ == "__main__":
    main()
