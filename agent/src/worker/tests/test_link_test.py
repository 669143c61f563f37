"""Two ranks try a link: what passes, what does not, and that both end either way."""

import socket
import unittest

import support
from gang_support import Gang


class LinkTest(unittest.TestCase):
    def start(self, **changes):
        pair = Gang(None, world_size=2, op="test_link", **changes)
        self.addCleanup(pair.__exit__)
        return pair

    def test_a_link_that_carries_passes_at_both_ends_and_is_measured(self):
        pair = self.start()
        self.assertEqual(pair.to_the_end(), {0: 0, 1: 0}, pair.fatals())
        for rank in (0, 1):
            [measured] = pair[rank].of("measured")
            self.assertGreater(measured["round_trip_us"], 0)
            # Loopback, with a busy machine beside it: far from zero, and no more than memory gives.
            self.assertGreater(measured["bytes_per_s"], 1e6)
            self.assertLess(measured["bytes_per_s"], 1e12)

    def test_one_who_waits_alone_gives_up_in_time(self):
        pair = self.start(absent=[1], gang={"rendezvous_timeout_ms": 1_000})
        self.assertEqual(pair.to_the_end(), {0: 3})
        self.assertEqual(pair.fatals()[0]["class"], "apart")

    def test_addresses_that_lead_nowhere_are_a_fault_of_the_link(self):
        # Bound, and nobody listens: MLX at rank 1 is refused, as over a cable that was plugged in elsewhere.
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            elsewhere = nobody.getsockname()[1]
            pair = self.start(hosts_of={1: elsewhere}, gang={"rendezvous_timeout_ms": 4_000})
            codes = pair.to_the_end()
        self.assertNotIn(0, codes.values(), pair.fatals())
        self.assertTrue(any(fatal["class"] == "link_fault" for fatal in pair.fatals().values()), pair.fatals())

    def test_sums_that_do_not_come_to_an_end_are_waited_for_no_longer_than_the_limit(self):
        # Met, and then nothing more comes, with every connection open (FIELD-NOTES 2: SIGSTOP, black-holed networks).
        measure = "lambda *_: __import__('time').sleep(600)"
        pair = self.start(programs={0: patched("MEASURE_LIMIT_S = 1.0"), 1: patched(f"_measure = {measure}")})
        codes = pair.to_the_end()
        self.assertEqual(pair.fatals()[0]["class"], "link_fault")
        self.assertIn("their sums were not done within 1 s", pair.fatals()[0]["message"])
        self.assertNotIn(0, codes.values())

    def test_who_has_measured_passes_whatever_becomes_of_the_other(self):
        # Between rank 0's verdict and its "end", and while rank 1 waits for that.
        die = "_part = lambda *_: __import__('os').kill(__import__('os').getpid(), 9)"
        for killed in (0, 1):
            with self.subTest(killed=killed):
                pair = self.start(programs={killed: patched(die)})
                codes = pair.to_the_end()
                self.assertEqual(codes[1 - killed], 0, pair.fatals())
                self.assertNotEqual(codes[killed], 0)
                self.assertEqual(pair.fatals(), {})
                self.assertEqual(len(pair[1 - killed].of("measured")), 1)

    def test_a_sum_that_is_wrong_at_one_end_fails_at_both(self):
        wrong = "_seconds = lambda mine, group, sound=link_test._seconds: (0.001, sound(mine, group)[1] + 1)"
        pair = self.start(programs={1: patched(wrong)})
        self.assertEqual(pair.to_the_end(), {0: 3, 1: 3})
        said = {(fatal["class"], fatal["message"]) for fatal in pair.fatals().values()}
        text = "rank 1: 1048576 of 1048576 values of a known sum over ring are wrong"
        self.assertEqual(said, {("canary_failed", text)})


def patched(change):
    """The worker's program with one thing in link_test.py changed."""
    return (
        "-c",
        f"import runpy, sys; sys.path.insert(0, {str(support.WORKER)!r}); import link_test; link_test.{change}; "
        f"runpy.run_path({str(support.WORKER / 'main.py')!r}, run_name='__main__')",
    )
