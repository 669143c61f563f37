"""Stands in for a worker: speaks its protocol without MLX, and misbehaves when a row's custom_id says so.

    answer…   an answer at once                 hold…     begun, three tokens, no answer
    crash…    an error on stderr, exit code 1   garbage…  a line that is not of the protocol
    fatal…    a fatal event, exit code 3        note…     a line on stderr, and an answer
    env…      the names of its environment variables as the answer
    who…      who and where it is, and its host file, as the answer

It says of a link what it has measured and ends, unless the ranks have an hour to meet: then it waits for ever.

Arguments: `stubborn` ignores SIGTERM and the end of stdin; `orphan` leaves a process behind that holds stdout open.
"""

import json
import os
import signal
import subprocess
import sys
import time

STUBBORN = "stubborn" in sys.argv
held = {}
steps = 0


def say(**event):
    try:
        os.write(1, (json.dumps(event, separators=(",", ":")) + "\n").encode())
    except BrokenPipeError:
        if not STUBBORN:
            raise


def hand_back(*_):
    parts = [{"row": n, "attempt": r["attempt"], "offset": 0, "tokens": r["tokens"] + [1, 2, 3]} for n, r in held.items()]
    if parts:
        say(ev="checkpoint", rows=parts)
        say(ev="returned", rows=list(held))
    os._exit(0)


def who():
    hosts = None
    if "MLX_HOSTFILE" in os.environ:
        with open(os.environ["MLX_HOSTFILE"]) as file:
            hosts = json.load(file)
    user, group = [os.getuid(), os.geteuid()], [os.getgid(), os.getegid()]
    return {"uid": user, "gid": group, "groups": os.getgroups(), "home": os.environ.get("HOME"), "cwd": os.getcwd(), "hosts": hosts}


def echo(name):
    if name.startswith("env"):
        return sorted(os.environ)
    return who() if name.startswith("who") else name


def take(row):
    global steps
    number, attempt, name = row["row"], row["attempt"], row["request"]["custom_id"]
    say(ev="started", rows=[number])
    steps += 1
    say(ev="step", n=steps, phase="decode", active=1, waiting=0, prompt_tokens=5, generated_tokens=3, peak_memory_bytes=9)
    if name.startswith("hold"):
        held[number] = row
        tokens = row["tokens"]
        say(ev="checkpoint", rows=[{"row": number, "attempt": attempt, "offset": len(tokens), "tokens": [1, 2, 3]}])
        return
    if name.startswith("crash"):
        print("Traceback (most recent call last):", file=sys.stderr)
        print("RuntimeError: [ring] connection to a peer was lost", file=sys.stderr)
        print("RuntimeError: [malloc] Unable to allocate 1 bytes", file=sys.stderr, flush=True)
        os._exit(1)
    if name.startswith("fatal"):
        say(ev="fatal", **{"class": "out_of_memory"}, message="there is not enough memory for this row")
        os._exit(3)
    if name.startswith("garbage"):
        os.write(1, b"Downloading shards: 40%\n")
        return
    if name.startswith("note"):
        print("a note about", name, file=sys.stderr, flush=True)
    say(
        ev="result", row=number, attempt=attempt, status=200, prompt_tokens=5, completion_tokens=3,
        resumed_tokens=len(row["tokens"]), body={"echo": echo(name)},
    )


def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN if STUBBORN else hand_back)
    if "orphan" in sys.argv:
        subprocess.Popen(["sleep", "60"], start_new_session=True, stdin=subprocess.DEVNULL)
    say(ev="hello", protocol=1, pid=os.getpid(), python="0", mlx="0", mlx_lm="0")
    for line in iter(sys.stdin.readline, ""):
        command = json.loads(line)
        if command["op"] == "init":
            say(ev="ready", load_ms=1, peak_memory_bytes=7, has_chat_template=True, model_type=command["model"])
            say(ev="idle", n=0)
        elif command["op"] == "test_link":
            if command["gang"]["rendezvous_timeout_ms"] < 3_600_000:
                say(ev="measured", round_trip_us=35, bytes_per_s=8_000)
                os._exit(0)
        elif command["op"] == "rows":
            for row in command["rows"]:
                take(row)
        elif command["op"] == "cancel":
            say(ev="cancelled", rows=[n for n in command["rows"] if held.pop(n, None)])
        elif STUBBORN:
            pass
        elif command["op"] == "checkpoint":
            hand_back()
        elif command["op"] == "finish":
            os._exit(0)
    while STUBBORN:
        time.sleep(1)


main()
