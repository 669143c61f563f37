"""The control channel by itself, with strangers."""

import secrets
import socket
import subprocess
import sys
import threading
import time
import unittest

import support
import gang_support
import channel
from faults import Fatal
from gang import Canary, Gang


class Events:
    def last(self, event):
        raise AssertionError(f"the process would have ended: {event}")


def told(rank, port, secret, size=2, limit_s=20.0):
    return Gang("tensor", "ring", rank, size, (), ("127.0.0.1", port), secret, limit_s, Canary())


class Meeting(unittest.TestCase):
    def setUp(self):
        [self.port] = gang_support.free_ports(1)
        self.secret = secrets.token_bytes(16)
        self.outcomes = {}
        self.threads = []
        self.links = {}

    def tearDown(self):
        for link in self.links.values():
            link.fail("the test is over")

    def start(self, rank, kind, **changes):
        secret = changes.pop("secret", self.secret)
        link = self.links[rank] = kind(told(rank, self.port, secret, **changes), Events())

        def run():
            try:
                link.gather(time.monotonic() + link.gang.rendezvous_timeout_s)
                self.outcomes[rank] = None
            except Fatal as error:
                self.outcomes[rank] = (error.fault, error.message)

        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()

    def wait(self):
        for thread in self.threads:
            thread.join(support.PATIENCE_S)
        return self.outcomes

    def test_frames_arrive_whole_and_in_order(self):
        self.start(1, channel.Following)
        self.start(0, channel.Leading)
        self.assertEqual(self.wait(), {0: None, 1: None})
        messages = [None, {"op": "step", "calls": [["insert", [1], [[1] * 100_000], [5]]]}, None, {"op": "x"}]
        for message in messages:
            self.links[0].announce(message)
        self.assertEqual([self.links[1].take(5)[1] for _ in messages], messages)
        self.links[1].report({"op": "loaded"})
        self.assertEqual(self.links[0].collect("loaded", 5), {1: {"op": "loaded"}})

    def test_strangers_disturb_nobody(self):
        self.start(0, channel.Leading)
        strangers = []
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1 << 16), secrets.token_bytes(68)):
            stranger = socket.socket()
            while stranger.connect_ex(("127.0.0.1", self.port)):
                stranger.close()
                stranger = socket.socket()
            stranger.sendall(said)
            strangers.append(stranger)
        self.start(1, channel.Following)
        self.assertEqual(self.wait(), {0: None, 1: None})
        for stranger in strangers:
            stranger.close()

    def test_another_secret_is_refused_and_both_say_so(self):
        self.start(0, channel.Leading, limit_s=1.5)
        self.start(1, channel.Following, secret=bytes(16))
        outcomes = self.wait()
        self.assertEqual(outcomes[1][0], "link_fault")
        self.assertIn("does not accept this rank's secret", outcomes[1][1])
        self.assertIn("rank 1 of 2 did not come", outcomes[0][1])
        self.assertIn("turned away: 127.0.0.1", outcomes[0][1])

    def test_who_does_not_come_is_named_to_those_who_did(self):
        self.start(0, channel.Leading, size=4, limit_s=1.5)
        self.start(2, channel.Following, size=4, limit_s=1.5)
        started = time.monotonic()
        outcomes = self.wait()
        self.assertLess(time.monotonic() - started, 5)
        self.assertIn("ranks 1 and 3 of 4 did not come", outcomes[0][1])
        self.assertIn("ranks 1 and 3 of 4 did not come", outcomes[2][1])
        self.assertEqual([outcomes[rank][0] for rank in (0, 2)], ["apart", "apart"])

    def test_nobody_listens(self):
        self.start(1, channel.Following, limit_s=0.5)
        outcome = self.wait()[1]
        self.assertIn("could not be reached", outcome[1])
        self.assertEqual(outcome[0], "apart")

    def test_a_place_is_given_once(self):
        self.start(0, channel.Leading, size=3, limit_s=2.0)
        self.start(1, channel.Following, size=3, limit_s=2.0)
        while 1 not in self.links[0]._taken:
            time.sleep(0.01)
        second = channel.Following(told(1, self.port, self.secret, 3), Events())
        with self.assertRaises(Fatal) as caught:
            second.gather(time.monotonic() + 2)
        self.assertIn("has one already", caught.exception.message)
        self.wait()


BLOCKED = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import os, secrets
from protocol import Inbox
import channel
from gang import Canary, Gang

gang = Gang("tensor", "ring", 0, 2, (), ("127.0.0.1", 1), secrets.token_bytes(16), 5.0, Canary())
link = channel.Leading(gang, None)
link.before_the_end(lambda: os.write(1, b"saved"))
inbox = Inbox(0)
inbox.abandoned = link.abandon
inbox.start()
# As inside MLX: no Python code of this thread runs any more, no signal handler either.
lock = threading.Lock()
lock.acquire()
threading.Thread(target=lambda: os.write(1, b"ready ")).start()
lock.acquire()
"""


class Abandoned(unittest.TestCase):
    def test_a_blocked_rank_saves_what_it_can_and_ends_by_itself(self):
        code = str(support.WORKER)
        command = [sys.executable, "-c", BLOCKED, code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rank:
            self.assertEqual(rank.stdout.read(6), b"ready ")
            rank.stdin.write(b'{"op":"abandon"}\n')
            rank.stdin.flush()
            self.assertEqual(rank.wait(support.PATIENCE_S), 0)
            self.assertEqual(rank.stdout.read(), b"saved")


if __name__ == "__main__":
    unittest.main()
