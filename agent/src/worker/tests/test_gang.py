import unittest

import support  # noqa: F401  (finds the modules)
import worker
from protocol import MalformedCommand

INIT = {
    "op": "init",
    "protocol": 1,
    "model": "/m",
    "max_batch_rows": 4,
    "prefill_batch_rows": 4,
    "prefill_step_tokens": 16,
    "checkpoint_interval_ms": 50,
    "default_max_tokens": 24,
    "job": "j7",
    "seed_base": "j7",
    "rank": 1,
    "world_size": 3,
}
GANG = {
    "mode": "pipeline",
    "backend": "jaccl-ring",
    "rank": 1,
    "world_size": 3,
    "layers": [[20, 28], [9, 20], [0, 9]],
    "control": "[fe80::1]:7000",
    "secret": "00" * 16,
    "rendezvous_timeout_ms": 2500,
    "canary": {"tokens": [1, 2], "max_tokens": 3, "expect": None},
}


class Init(unittest.TestCase):
    def test_a_rank_learns_its_place(self):
        gang = worker.parse_init({**INIT, "gang": GANG}).gang
        self.assertEqual((gang.rank, gang.world_size, gang.span, gang.leads), (1, 3, (9, 20), False))
        self.assertEqual((gang.control, gang.control_text), (("fe80::1", 7000), "[fe80::1]:7000"))
        self.assertEqual((gang.rendezvous_timeout_s, gang.secret), (2.5, bytes(16)))
        self.assertEqual((gang.canary.tokens, gang.canary.max_tokens, gang.canary.expect), ((1, 2), 3, None))
        self.assertNotIn("secret", repr(gang))

    def test_an_independent_worker_may_have_a_canary_and_no_gang(self):
        alone = {**INIT, "rank": 0, "world_size": 1}
        self.assertIsNone(worker.parse_init(alone).gang)
        self.assertIsNone(worker.parse_init(alone).canary)
        self.assertEqual(worker.parse_init({**alone, "canary": {"expect": [7]}}).canary.expect, (7,))

    def test_what_does_not_fit_is_named(self):
        for changes, words in (
            ({"mode": "mesh"}, '"mode"'),
            ({"backend": "mpi"}, '"backend"'),
            ({"backend": ["ring"]}, '"backend"'),
            ({"rank": 3}, "rank 3 cannot be of a gang of 3"),
            ({"rank": 0}, "its gang rank 0 of 3"),
            ({"world_size": 1}, '"world_size"'),
            ({"layers": [[20, 28], [9, 20]]}, "2 spans for 3 ranks"),
            ({"layers": [[20, 28], [9, 19], [0, 9]]}, "rank 0 the span [20, 28], which does not go on at layer 19"),
            ({"layers": [[20, 28], [9, 20], [1, 9]]}, "does not go on at layer 0"),
            ({"layers": [[20, 20], [9, 20], [0, 9]]}, "rank 0"),
            ({"layers": [[20, 28], [9, True], [0, 9]]}, '"layers"'),
            ({"mode": "tensor"}, "empty in tensor mode"),
            ({"control": "localhost"}, '"control"'),
            ({"control": "1.2.3.4:0"}, '"control"'),
            ({"secret": "abcd"}, "16 bytes"),
            ({"secret": "zz" * 16}, "hexadecimal"),
            ({"rendezvous_timeout_ms": 0}, '"rendezvous_timeout_ms"'),
            ({"canary": {"tokens": []}}, '"tokens"'),
            ({"canary": {"expect": [-1]}}, '"expect"'),
            ({"canary": {"max_tokens": 100_000}}, '"max_tokens"'),
            ({"canary": [1]}, '"canary"'),
        ):
            with self.assertRaises(MalformedCommand) as caught:
                worker.parse_init({**INIT, "gang": {**GANG, **changes}})
            self.assertIn(words, str(caught.exception), changes)
        for init in (INIT, {**INIT, "gang": "yes"}, {**INIT, "world_size": 1}):
            with self.assertRaises(MalformedCommand):
                worker.parse_init(init)


if __name__ == "__main__":
    unittest.main()
