import json
import os
import threading
import unittest

import support  # noqa: F401  (finds the modules)
from protocol import MAX_LINES_AHEAD, Events, Inbox, MalformedCommand, decode, encode


class Lines(unittest.TestCase):
    def test_an_event_is_one_line_of_utf8_json_whatever_it_holds(self):
        event = {"text": "night\n\u2028 🌙 \x00 \ud800 half", "n": 1}
        line = encode(event)
        self.assertEqual(line.count(b"\n"), 1)
        self.assertEqual(json.loads(line.decode()), {"text": "night\n\u2028 🌙 \x00 ? half", "n": 1})

    def test_numbers_that_json_has_no_words_for_are_an_error_here_and_not_at_the_reader(self):
        with self.assertRaises(ValueError):
            encode({"n": float("nan")})

    def test_integers_of_any_length_are_read(self):
        self.assertEqual(decode(b'{"a":' + b"9" * 10_000 + b"}"), {"a": float("inf")})
        self.assertEqual(decode(b'{"a":12345678901234567890}'), {"a": 12345678901234567890})

    def test_lists_of_any_depth_are_read_with_their_depths_cut(self):
        number, lists = b"9" * 10_000, b"[" * 100_000 + b"]" * 100_000
        deep = b'{"rows":[{"row":1,"n":%b,"x":%b,"y":"a]\\"["},{"row":2}]}' % (number, lists)
        rows = decode(deep)["rows"]
        self.assertEqual([row["row"] for row in rows], [1, 2])
        self.assertEqual(rows[0]["y"], 'a]"[')

    def test_a_long_event_passes_through_a_small_pipe_whole(self):
        reading, writing = os.pipe()
        received = []
        reader = threading.Thread(target=lambda: received.append(_read_all(reading)))
        reader.start()
        Events(writing).send({"text": "x" * 1_000_000})
        os.close(writing)
        reader.join()
        self.assertEqual(len(json.loads(received[0])["text"]), 1_000_000)


class Commands(unittest.TestCase):
    def setUp(self):
        self.reading, self.writing = os.pipe()
        self.gone = threading.Event()
        self.inbox = Inbox(self.reading, self._agent_gone)
        self.open = True

    def _agent_gone(self):
        self.gone.set()
        raise SystemExit

    def tearDown(self):
        self.close()
        self.assertTrue(self.gone.wait(support.PATIENCE_S))
        os.close(self.reading)

    def close(self):
        if self.open:
            os.close(self.writing)
            self.open = False

    def test_commands_come_in_order_however_the_bytes_are_cut(self):
        self.inbox.start()
        for byte in b'{"op":"a"}\n\n{"op":"b"}\n':
            os.write(self.writing, bytes([byte]))
        self.assertEqual(self.inbox.take(support.PATIENCE_S), {"op": "a"})
        self.assertEqual(self.inbox.take(support.PATIENCE_S), {"op": "b"})
        self.assertIsNone(self.inbox.take(0))

    def test_what_is_no_command_is_said_to_be_none(self):
        self.inbox.start()
        for line in (b"rubbish\n", b'"op"\n', b'{"op":1}\n', b"\xff\xfe\n"):
            os.write(self.writing, line)
            with self.assertRaises(MalformedCommand):
                self.inbox.take(support.PATIENCE_S)

    def test_a_waiting_take_can_be_woken(self):
        threading.Timer(0.05, self.inbox.wake).start()
        self.assertIsNone(self.inbox.take(support.PATIENCE_S))
        self.inbox.start()

    def test_the_end_of_the_agent_is_noticed_though_nobody_takes_commands(self):
        os.write(self.writing, b'{"op":"a"}\n' * (MAX_LINES_AHEAD * 3))
        self.inbox.start()
        self.close()
        self.assertTrue(self.gone.wait(support.PATIENCE_S))

    def test_no_more_is_read_ahead_than_the_bound(self):
        self.inbox.start()
        os.write(self.writing, b'{"op":"a"}\n' * (MAX_LINES_AHEAD * 3))
        for _ in range(MAX_LINES_AHEAD * 3):
            self.assertIsNotNone(self.inbox.take(support.PATIENCE_S))
            self.assertLessEqual(self.inbox._items.qsize(), MAX_LINES_AHEAD)


def _read_all(fd):
    parts = []
    while chunk := os.read(fd, 4096):
        parts.append(chunk)
    os.close(fd)
    return b"".join(parts)


if __name__ == "__main__":
    unittest.main()
