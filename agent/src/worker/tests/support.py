"""What the tests share: tiny models made once a run, an engine driven in this process, a worker driven over pipes."""

import atexit
import contextlib
import functools
import io
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

WORKER = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(WORKER))
# No test may depend on, or wait for, the model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ARCHITECTURES = ("llama", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3", "glm4_moe")
WORDS = "night shift train station lamp rain signal clerk number meter book morning porter nothing seven eight".split()
# Far beyond what anything here takes, on a busy machine too: it only ends what would never end.
PATIENCE_S = 120


@functools.cache
def scratch():
    """A directory that lives as long as the test run."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="nightshift-worker-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def model_directory(arch="llama", *flags):
    return _model_directory(arch, flags)


@functools.cache
def _model_directory(arch, flags):
    import tiny_model

    out = scratch() / "-".join([arch, *flags]).replace("--", "")
    tiny_model.make(tiny_model._parse(["--arch", arch, "--out", str(out), *flags]))
    return str(out)


def model(arch="llama", *flags):
    return _model(arch, flags)


@functools.cache
def _model(arch, flags):
    import loader

    return loader.load(_model_directory(arch, flags))


def bare_model():
    """Half precision, no chat template, a context of 100 tokens."""
    return model("llama", "--no-chat-template", "--layers", "2", "--dtype", "bfloat16", "--max-position", "100")


def completion(row, prompt, **body):
    return _row(row, "/v1/completions", {"prompt": prompt, "max_tokens": 24, "temperature": 0, **body})


def chat(row, content, **body):
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return _row(row, "/v1/chat/completions", {"messages": messages, "max_tokens": 24, "temperature": 0, **body})


def _row(row, url, body):
    body = {"model": "any", **body}
    return {"row": row, "attempt": 1, "request": {"custom_id": f"r{row}", "method": "POST", "url": url, "body": body}}


def some_rows(count, rng, **body):
    """Completions over prompts of very different lengths."""
    return [completion(n, " ".join(rng.choices(WORDS, k=rng.randint(1, 50))), **body) for n in range(count)]


def text(result):
    choice = result["body"]["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def answer(result):
    """What must not change when a row is disturbed: all of the body but the time."""
    return {key: value for key, value in result["body"].items() if key != "created"}


def quiet():
    """Keeps what a failure that is meant says on stderr out of the test's output."""
    return contextlib.redirect_stderr(io.StringIO())


class Recorded:
    """Stands in for the event stream; what passes must be JSON."""

    def __init__(self):
        self.events = []

    def add(self, event):
        from protocol import encode

        self.events.append(json.loads(encode(event)))

    send = add

    def flush(self, last=b""):
        if last:
            self.events.append(json.loads(last))

    def of(self, kind):
        return [event for event in self.events if event["ev"] == kind]

    def results(self):
        return {event["row"]: event for event in self.of("result")}


def options(**changes):
    import worker

    values = {
        "model": "any",
        "max_batch_rows": 8,
        "prefill_batch_rows": 8,
        "prefill_step_tokens": 2048,
        "checkpoint_interval_s": 3600.0,
        "default_max_tokens": 24,
        "job": "j7",
        "seed_base": "j7",
    }
    return worker.Options(**{**values, **changes})


def engine(loaded, events, **changes):
    from engine import Engine

    return Engine(loaded, options(**changes), events)


def run(loaded, rows, arriving_every=0, **changes):
    """Results by row, of rows that come all at once or one every so many steps."""
    events = Recorded()
    driven = engine(loaded, events, **changes)
    # As over the wire: the engine may keep and change what it is given.
    coming = json.loads(json.dumps(rows))
    steps = 0
    while coming or driven.has_work():
        while coming and (not arriving_every or steps % arriving_every == 0):
            driven.add(coming.pop(0))
            if arriving_every:
                break
        driven.step()
        steps += 1
    driven.close()
    return events.results()


class WorkerProcess:
    """A real worker process and the agent's end of its pipes. Ends with the `with` block, whatever happens."""

    def __init__(self, directory, environment=None, program=(str(WORKER / "main.py"),), **changes):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(scratch()),
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        }
        self.log = open(scratch() / f"worker-{time.monotonic_ns()}.log", "w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-E", "-s", "-B", "-u", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )
        self._unread = b""
        self.seen = []
        init = {
            "op": "init",
            "protocol": 1,
            "model": directory,
            "max_batch_rows": 4,
            "prefill_batch_rows": 4,
            "prefill_step_tokens": 2048,
            "checkpoint_interval_ms": 50,
            "default_max_tokens": 24,
            "job": "j7",
            "seed_base": "j7",
            "rank": 0,
            "world_size": 1,
        }
        self.send({**init, **changes})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            try:
                file.close()
            except BrokenPipeError:
                pass

    def send(self, command):
        self.send_line(json.dumps(command).encode())

    def send_line(self, line):
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def rows(self, rows):
        self.send({"op": "rows", "rows": rows})

    def event(self):
        """The next event, None at the end of the stream."""
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._unread:
            if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"the worker says nothing; so far: {self.seen[-5:]}, log: {self.log_text()}")
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                if self._unread:
                    raise AssertionError(f"half a line at the end: {self._unread!r}")
                return None
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        self.seen.append(json.loads(line))
        return self.seen[-1]

    def until(self, kind, enough=lambda event: True):
        """Reads on to an event of this kind that is enough."""
        while (event := self.event()) is not None:
            if event["ev"] == kind and enough(event):
                return event
        raise AssertionError(f'the stream ended without "{kind}"; last: {self.seen[-5:]}, log: {self.log_text()}')

    def to_the_end(self):
        """Reads all that is left; returns the exit code."""
        while self.event() is not None:
            pass
        return self.process.wait(PATIENCE_S)

    def of(self, kind):
        return [event for event in self.seen if event["ev"] == kind]

    def results(self):
        return {event["row"]: event for event in self.of("result")}

    def log_text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text(errors="replace")
