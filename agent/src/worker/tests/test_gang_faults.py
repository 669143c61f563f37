"""What becomes of a gang when a rank, a link, a secret or an answer is not what it should be."""

import os
import random
import signal
import socket
import time
import unittest

import support
from gang_support import Gang, spans
from support import completion, some_rows

ALL = bool(os.environ.get("NIGHTSHIFT_ALL_GANGS"))
MODEL = "llama"
# All ranks end within channel.GRACE_S; the rest is for a busy machine.
WITHIN_S = 10


class Losses(unittest.TestCase):
    def setUp(self):
        self.directory = support.model_directory(MODEL)

    def start(self, *sizes, **changes):
        gang = Gang(self.directory, spans(*sizes), **changes)
        self.addCleanup(gang.__exit__)
        return gang

    def at_work(self, *sizes):
        gang = self.start(*sizes, checkpoint_interval_ms=3_600_000)
        gang.ready()
        gang.lead.rows(some_rows(3, random.Random(5), max_tokens=1500))
        gang.lead.until("step", lambda event: event["generated_tokens"] > 10)
        return gang

    def all_end(self, gang, lost, within_s=WITHIN_S):
        since = time.monotonic()
        codes = gang.to_the_end()
        self.assertLess(time.monotonic() - since, within_s)
        fatals = gang.fatals()
        for rank in set(gang.ranks) - set(lost):
            if codes[rank] == -signal.SIGSEGV:
                # MLX's ring, now and then, after it has said what it lost; the agent reads the class from the log.
                self.assertIn("[ring]", gang[rank].log_text())
                continue
            self.assertEqual(codes[rank], 3, gang[rank].log_text())
            self.assertEqual(fatals[rank]["class"], "link_fault", fatals)
        return fatals

    def test_a_killed_follower_ends_all(self):
        gang = self.at_work(1, 2, 1)
        gang[1].process.kill()
        self.all_end(gang, [1])
        if gang.codes.get(0, 3) == 3 and gang.fatals().get(0):
            checkpoint = gang.lead.of("checkpoint")[-1]["rows"]
            self.assertTrue(all(part["tokens"] for part in checkpoint), "what there is of the answers is saved")

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_a_killed_rank_0_ends_all(self):
        gang = self.at_work(1, 2, 1)
        gang.lead.process.kill()
        fatals = self.all_end(gang, [0])
        for fatal in fatals.values():
            self.assertTrue("rank 0" in fatal["message"] or "[ring]" in fatal["message"], fatal)

    def test_a_killed_follower_ends_an_idle_gang(self):
        gang = self.start(2, 2)
        gang.lead.until("idle")
        gang[1].process.kill()
        self.assertEqual(self.all_end(gang, [1])[0]["message"], "rank 1 is gone")

    def test_an_idle_gang_says_so_and_does_nothing_else(self):
        gang = self.start(2, 2)
        gang.lead.until("idle")
        gang.lead.until("idle")
        if os.path.exists("/proc/self/stat"):
            before = [_cpu_seconds(worker.process.pid) for worker in gang.ranks.values()]
            for _ in range(3):
                gang.lead.until("idle")
            spent = [_cpu_seconds(w.process.pid) - s for w, s in zip(gang.ranks.values(), before)]
            self.assertLess(max(spent), 0.5, "no rank turns while there is nothing to do")
        self.assertGreaterEqual(len(gang[1].of("idle")), 3)
        self.assertEqual(set(gang.finish().values()), {0})

    def test_the_end_of_any_agent_ends_the_gang(self):
        for rank in (0, 1):
            with self.subTest(rank=rank):
                gang = self.at_work(2, 2)
                gang[rank].process.stdin.close()
                self.all_end(gang, [rank])
                self.assertEqual(gang[rank].process.returncode, 0)

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_a_frozen_follower_can_be_ended_and_the_gang_with_it(self):
        gang = self.at_work(2, 2)
        gang[1].process.send_signal(signal.SIGSTOP)
        # No socket shows it; it is the controller that misses steps and ends the rank.
        gang[1].process.kill()
        self.all_end(gang, [1])

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_a_follower_waits_for_rank_0_after_one_sigterm_and_ends_at_two(self):
        gang = self.start(2, 2)
        gang.lead.until("idle")
        gang[1].process.send_signal(signal.SIGTERM)
        gang.lead.rows([completion(0, "night")])
        gang.lead.until("result")
        gang[1].process.send_signal(signal.SIGTERM)
        self.all_end(gang, [1])
        self.assertEqual(gang.codes[1], 0)

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_rows_are_for_rank_0(self):
        gang = self.start(2, 2)
        gang.lead.until("idle")
        gang[1].rows([completion(0, "night")])
        codes = gang.to_the_end()
        self.assertEqual(set(codes.values()), {3})
        self.assertIn('"rows" is for rank 0', gang.fatals()[1]["message"])
        self.assertIn("rank 1 has ended", gang.fatals()[0]["message"])


class Beginnings(unittest.TestCase):
    def setUp(self):
        self.directory = support.model_directory(MODEL)

    def fails(self, gang, within_s, codes_may_be=(3,)):
        since = time.monotonic()
        self.addCleanup(gang.__exit__)
        codes = gang.to_the_end()
        self.assertLess(time.monotonic() - since, within_s)
        logs = {rank: one.log_text() for rank, one in gang.ranks.items()}
        self.assertLessEqual(set(codes.values()), set(codes_may_be), logs)
        return gang.fatals()

    def test_a_rank_that_never_comes(self):
        gang = Gang(self.directory, spans(1, 2, 1), absent=[2], gang={"rendezvous_timeout_ms": 3000})
        for fatal in self.fails(gang, 3 + WITHIN_S).values():
            self.assertEqual(fatal["class"], "apart")
            self.assertIn("rank 2 of 3 did not come", fatal["message"])

    def test_another_secret(self):
        gang = Gang(
            self.directory,
            spans(2, 2),
            by_rank={1: {"secret": "ab" * 16}},
            gang={"rendezvous_timeout_ms": 4000},
        )
        fatals = self.fails(gang, 4 + WITHIN_S)
        self.assertIn("does not accept this rank's secret", fatals[1]["message"])
        self.assertIn("rank 1 of 2 did not come", fatals[0]["message"])

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_a_stranger_on_the_control_port_changes_nothing(self):
        gang = Gang(self.directory, spans(2, 2))
        self.addCleanup(gang.__exit__)
        strangers = 0
        while strangers < 3:
            # As soon as rank 0 listens.
            stranger = socket.socket()
            if stranger.connect_ex(gang.control) == 0:
                self.addCleanup(stranger.close)
                stranger.sendall(os.urandom(200))
                strangers += 1
            else:
                stranger.close()
                self.assertIsNone(gang.lead.process.poll())
        gang.lead.until("idle")
        self.assertEqual(set(gang.finish().values()), {0})

    def test_mlx_that_does_not_form_a_group_is_given_up(self):
        # All come to rank 0, but one of them is told to meet the others elsewhere.
        gang = Gang(self.directory, spans(2, 2), gang={"rendezvous_timeout_ms": 4000}, hosts_of={1: 9})
        fatals = self.fails(gang, 4 + WITHIN_S, codes_may_be=(3, -signal.SIGKILL))
        self.assertEqual(set(fatals), {0, 1})
        self.assertEqual({fatal["class"] for fatal in fatals.values()}, {"link_fault"})

    def test_a_wrong_answer_ends_all_ranks_with_what_differs(self):
        gang = Gang(self.directory, spans(2, 2), gang={"canary": {"expect": [1, 2, 3], "max_tokens": 3}})
        fatals = self.fails(gang, support.PATIENCE_S)
        self.assertEqual({fatal["class"] for fatal in fatals.values()}, {"canary_failed"})
        self.assertEqual(fatals[0]["message"], fatals[1]["message"])
        self.assertIn("rank 0: the canary prompt gave tokens", fatals[0]["message"])
        self.assertIn("on record are [1, 2, 3]", fatals[0]["message"])

    def test_the_answer_of_one_process_is_the_answer_of_a_gang(self):
        for prompt in (None, [5, 6, 7]) if ALL else (None,):
            canary = {"tokens": prompt, "max_tokens": 5, "expect": None}
            with support.WorkerProcess(self.directory, canary=canary) as alone:
                tokens = alone.until("ready")["canary"]["tokens"]
            self.assertEqual(len(tokens), 5)
            with Gang(self.directory, spans(3, 1), gang={"canary": {**canary, "expect": tokens}}) as gang:
                self.assertEqual(gang.ready()["canary"]["tokens"], tokens)

    def test_a_worker_alone_with_a_wrong_answer(self):
        with support.WorkerProcess(self.directory, canary={"expect": [1]}) as alone:
            self.assertEqual(alone.until("fatal")["class"], "canary_failed")
            self.assertEqual(alone.to_the_end(), 3)

    @unittest.skipUnless(ALL, "one of many ways: NIGHTSHIFT_ALL_GANGS=1 runs it")
    def test_what_cannot_be_cut_is_said(self):
        for layers, world_size, words in ((spans(2, 3), None, "this one has 4"), (None, 3, "num_attention_heads")):
            gang = Gang(self.directory, layers, world_size=world_size)
            fatals = self.fails(gang, support.PATIENCE_S)
            own = [fatal["message"] for fatal in fatals.values() if fatal["class"] == "model_unsupported"]
            self.assertTrue(own and all(words in message for message in own), fatals)


def _cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    unittest.main()
