"""Whole worker processes, spoken to as the agent speaks to them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import unittest

import support
from support import WorkerProcess, answer, chat, completion, some_rows

MODEL = "llama"


def joined(worker):
    """The tokens of each row as the checkpoints told them, with nothing missing between."""
    tokens = {}
    for event in worker.of("checkpoint"):
        for part in event["rows"]:
            have = tokens.setdefault(part["row"], [])
            assert part["offset"] <= len(have), "checkpoints leave no gap"
            assert have[part["offset"] :] == part["tokens"][: len(have) - part["offset"]], "and say the same twice"
            tokens[part["row"]] = have[: part["offset"]] + part["tokens"]
    return tokens


class Life(unittest.TestCase):
    def test_a_night(self):
        rows = [*some_rows(6, random.Random(1), max_tokens=20, temperature=1.0), chat(6, "夜 🌙 \x00"), chat(7, "x", n=2)]
        expected = support.run(support.model(MODEL), rows)
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            hello = worker.event()
            self.assertEqual((hello["ev"], hello["protocol"], hello["pid"]), ("hello", 1, worker.process.pid))
            self.assertEqual((hello["mlx"], hello["mlx_lm"]), ("0.32.4", "0.32.2"))
            ready = worker.event()
            self.assertEqual((ready["ev"], ready["has_chat_template"], ready["model_type"]), ("ready", True, MODEL))
            self.assertGreater(ready["peak_memory_bytes"], 0)
            self.assertEqual(worker.event(), {"ev": "idle", "n": 0})
            worker.rows(rows[:3])
            worker.rows(rows[3:])
            worker.until("idle")
            worker.send({"op": "finish"})
            self.assertEqual(worker.to_the_end(), 0)
            self.assertEqual(set(worker.results()), set(range(8)))
            for row, result in worker.results().items():
                self.assertEqual(answer(result), answer(expected[row]))
            self.assertEqual(worker.results()[7]["status"], 400)
            self.assertEqual(worker.of("returned"), [])

    def test_an_idle_worker_says_so_and_does_nothing_else(self):
        if not os.path.exists("/proc/self/stat"):
            self.skipTest("needs /proc to see a process's CPU time")

        def cpu_seconds(pid):
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.until("idle")
            before = cpu_seconds(worker.process.pid)
            since = time.monotonic()
            for _ in range(2):
                self.assertEqual(worker.event(), {"ev": "idle", "n": 0})
            self.assertLess(cpu_seconds(worker.process.pid) - before, 0.05 * (time.monotonic() - since))

    def test_finish_ends_what_is_begun_and_returns_the_rest(self):
        rows = some_rows(12, random.Random(2), max_tokens=30)
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.rows(rows)
            worker.until("step", lambda event: event["generated_tokens"] > 0)
            worker.send({"op": "finish"})
            worker.rows([completion(50, "too late")])
            self.assertEqual(worker.to_the_end(), 0)
            returned = [row for event in worker.of("returned") for row in event["rows"]]
            started = {row for event in worker.of("started") for row in event["rows"]}
            self.assertEqual(set(worker.results()), started)
            self.assertTrue(set(range(12)) - started <= set(returned) <= {*range(12), 50} - started)

    def test_cancelled_rows_leave_no_result(self):
        rows = some_rows(6, random.Random(3), max_tokens=400)
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.rows(rows)
            worker.until("step", lambda event: event["generated_tokens"] > 0)
            worker.send({"op": "cancel", "rows": [0, 5, 77]})
            cancelled = set(worker.until("cancelled")["rows"])
            worker.until("idle")
            self.assertTrue(cancelled <= {0, 5})
            self.assertEqual(set(worker.results()), set(range(6)) - cancelled)


class Ends(unittest.TestCase):
    def resumed_elsewhere(self, stop):
        """Stops a worker amid its rows, gives what it hands back to another, and compares with no stop at all."""
        rows = some_rows(7, random.Random(4), max_tokens=300)
        for row in rows[::2]:
            row["request"]["body"] |= {"temperature": 1.0, "top_p": 0.95}
        rows[3]["request"]["body"]["logprobs"] = 2
        expected = support.run(support.model(MODEL), rows)
        with WorkerProcess(support.model_directory(MODEL)) as first:
            first.rows(rows)
            for _ in range(3):
                first.until("checkpoint")
            stop(first)
            self.assertEqual(first.to_the_end(), 0)
        returned = [row for event in first.of("returned") for row in event["rows"]]
        self.assertEqual(sorted([*first.results(), *returned]), list(range(7)))
        tokens, logprobs = joined(first), {}
        for event in first.of("checkpoint"):
            for part in event["rows"]:
                if "logprobs" in part:
                    logprobs[part["row"]] = logprobs.get(part["row"], [])[: part["offset"]] + part["logprobs"]
        self.assertTrue(any(tokens.get(row) for row in returned))
        with WorkerProcess(support.model_directory(MODEL)) as second:
            second.rows(
                [
                    {**rows[row], "attempt": 2, "tokens": tokens.get(row, []), "logprobs": logprobs.get(row)}
                    for row in returned
                ]
            )
            second.send({"op": "finish"})
            self.assertEqual(second.to_the_end(), 0)
            again = second.of("returned")
        results = {**first.results(), **second.results()}
        for row, result in results.items():
            self.assertEqual(answer(result), answer(expected[row]), row)
        self.assertEqual(sorted([*results, *(row for event in again for row in event["rows"])]), list(range(7)))
        resumed = {row: result["resumed_tokens"] for row, result in second.results().items()}
        self.assertEqual(resumed, {row: len(tokens.get(row, [])) for row in resumed})

    def test_sigterm_hands_everything_back(self):
        self.resumed_elsewhere(lambda worker: worker.process.send_signal(signal.SIGTERM))

    def test_checkpoint_hands_everything_back(self):
        self.resumed_elsewhere(lambda worker: worker.send({"op": "checkpoint"}))

    def test_sigterm_ends_an_idle_worker_at_once_and_sigint_does_not(self):
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.until("idle")
            worker.process.send_signal(signal.SIGINT)
            worker.until("idle")
            worker.process.send_signal(signal.SIGTERM)
            self.assertEqual(worker.to_the_end(), 0)

    def test_sigterm_ends_a_worker_that_has_not_loaded_yet(self):
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.until("hello")
            worker.process.send_signal(signal.SIGTERM)
            self.assertEqual(worker.to_the_end(), 0)
            self.assertEqual(worker.of("fatal"), [])

    def test_the_end_of_the_agent_is_the_end_of_the_worker_amid_a_step(self):
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.rows(some_rows(4, random.Random(5), max_tokens=2000))
            worker.until("step", lambda event: event["generated_tokens"] > 0)
            worker.process.stdin.close()
            since = time.monotonic()
            self.assertEqual(worker.to_the_end(), 0)
            self.assertLess(time.monotonic() - since, 5)
            self.assertLess(len(worker.results()), 4)

    def test_an_agent_that_stops_reading_and_goes_leaves_no_worker(self):
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.rows(some_rows(4, random.Random(5), max_tokens=2000))
            worker.until("step")
            worker.process.stdout.close()
            self.assertEqual(worker.process.wait(support.PATIENCE_S), 0)

    def test_what_is_no_command_is_fatal(self):
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.send_line(b"rubbish")
            fatal = worker.until("fatal")
            self.assertEqual(fatal["class"], "crashed")
            self.assertIn("not JSON", fatal["message"])
            self.assertEqual(worker.to_the_end(), 3)

    def test_a_worker_that_cannot_start_says_why(self):
        for changes, fault, words in (
            ({"model": "/nowhere"}, "model_unreadable", "/nowhere"),
            ({"protocol": 2}, "crashed", "protocol 1"),
            ({"world_size": 2}, "crashed", "gang"),
            ({"max_batch_rows": 0}, "crashed", "max_batch_rows"),
        ):
            with WorkerProcess(support.model_directory(MODEL), **changes) as worker:
                fatal = worker.until("fatal")
                self.assertEqual(fatal["class"], fault)
                self.assertIn(words, fatal["message"])
                self.assertEqual(worker.to_the_end(), 3)


class Rubbish(unittest.TestCase):
    def test_no_content_of_a_row_stops_the_worker(self):
        def row(number, body, url="completions"):
            return b'{"row":%d,"attempt":1,"request":{"url":"/v1/%s","body":%s}}' % (number, url.encode(), body)

        bodies = [
            row(0, b'{"prompt":"\\ud800 half"}'),
            row(1, b'{"prompt":"x","\\ud800":1}'),
            row(2, b'{"prompt":"x","seed":' + b"9" * 10_000 + b"}"),
            row(3, b'{"prompt":"x","metadata":' + b"[" * 5000 + b"]" * 5000 + b',"max_tokens":2}'),
            row(4, b'{"prompt":"\\u0000\\ufffd\\uffff","max_tokens":2}'),
            row(5, b'{"prompt":"' + b"night " * 20_000 + b'"}'),
            row(6, b'{"prompt":"x","temperature":NaN}'),
            row(7, b'{"messages":[{"role":"user","content":"\\ud83c\\udf19 \\udf19"}]}', "chat/completions"),
            row(8, b'{"prompt":"x","max_tokens":2,"stop":"\\u0000"}'),
        ]
        with WorkerProcess(support.model_directory(MODEL)) as worker:
            worker.send_line(b'{"op":"rows","rows":[' + b",".join(bodies) + b"]}")
            worker.until("result", lambda _: len(worker.results()) == len(bodies))
            worker.send({"op": "finish"})
            self.assertEqual(worker.to_the_end(), 0)
            status = {row: result["status"] for row, result in worker.results().items()}
            self.assertEqual(status, {0: 400, 1: 400, 2: 400, 3: 200, 4: 200, 5: 400, 6: 400, 7: 400, 8: 200})
            self.assertEqual(worker.results()[5]["body"]["error"]["code"], "context_length_exceeded")

    def test_what_libraries_print_is_not_taken_for_events(self):
        script = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import main\n"
            "_, events = main.claim_streams()\n"
            "print('noise', flush=True); os.write(1, b'more noise'); os.system('echo and more')\n"
            "main.Events(events).send({'ev': 'hello'})\n"
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", script, str(support.WORKER)], capture_output=True, timeout=support.PATIENCE_S
        )
        self.assertEqual(json.loads(done.stdout), {"ev": "hello"}, done.stderr)
        self.assertIn(b"and more", done.stderr)


class Inbox:
    """Commands handed over in this process."""

    def __init__(self, *commands):
        self.commands = list(commands)

    def take(self, _wait_s):
        return self.commands.pop(0) if self.commands else None


class Faults(unittest.TestCase):
    def test_commands_without_their_shape_are_said_to_be_so(self):
        import worker
        from protocol import MalformedCommand

        engine = support.engine(support.model(MODEL), support.Recorded())
        shapeless = ({"op": "rows"}, {"op": "rows", "rows": [{"attempt": 1}]}, {"op": "cancel", "rows": 5})
        for command in ({"op": "dance"}, *shapeless):
            with self.assertRaises(MalformedCommand) as caught:
                worker.Worker(engine, Inbox(command), support.Recorded(), lambda: False).run()
            self.assertIn(command["op"], str(caught.exception))

    def test_what_breaks_in_a_step_is_classified_after_the_tokens_are_saved(self):
        import worker
        from faults import Fatal

        events = support.Recorded()
        engine = support.engine(support.model(MODEL), events)
        engine.add(completion(0, "Hello", max_tokens=30))
        for _ in range(6):
            engine.step()

        def fault():
            raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error (00000003:…Hang)")

        engine._generator.next = fault

        with self.assertRaises(Fatal) as caught:
            worker.Worker(engine, Inbox(), events, lambda: False).run()
        self.assertEqual(caught.exception.fault, "gpu_fault")
        self.assertEqual(len(events.events[-1]["rows"][0]["tokens"]), 4)


if __name__ == "__main__":
    unittest.main()
