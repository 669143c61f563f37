import random
import unittest

import support
from text import Pieces, StopWatch, TokenNames, find_stop


class Text(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = support.model().tokenizer

    def tokens(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def test_pieces_add_up_to_the_whole(self):
        for text in ("The night shift", "夜勤は 🌙 ends — “so” ½", "a\n\n b\tc  d", "\x00\x01"):
            pieces = Pieces(self.tokenizer.decode)
            self.assertEqual("".join(map(pieces.add, self.tokens(text))), text)

    def test_bytes_that_never_become_characters_are_not_held_for_ever(self):
        rng = random.Random(1)
        pieces = Pieces(self.tokenizer.decode)
        for _ in range(2000):
            pieces.add(rng.randrange(5, 261))
            self.assertLess(len(pieces._window), 12)

    def test_a_stop_string_is_seen_at_the_token_that_completes_it(self):
        text = "The porter says: 夜 good night"
        tokens = self.tokens(text)
        for stop in ("porter", "r s", "says: 夜", "夜", "t", "good night"):
            watch = StopWatch((stop,), self.tokenizer.decode)
            at = next(n for n, token in enumerate(tokens, 1) if watch.add(token))
            self.assertIn(stop, self.tokenizer.decode(tokens[:at]))
            self.assertNotIn(stop, self.tokenizer.decode(tokens[: at - 1]))

    def test_a_stop_string_that_is_not_there_is_not_seen(self):
        watch = StopWatch(("porter!", "xyz"), self.tokenizer.decode)
        self.assertFalse(any([watch.add(token) for token in self.tokens("The porter says good night")]))

    def test_the_first_stop_string_cuts(self):
        self.assertEqual(find_stop("one two three", ("three", "two")), 4)
        self.assertEqual(find_stop("one", ("two",)), -1)
        self.assertEqual(find_stop("one", ()), -1)

    def test_every_token_has_its_bytes(self):
        names = TokenNames(self.tokenizer)
        for text in ("The night 夜勤 🌙 — ½", "</s> x"):
            self.assertEqual(b"".join(map(names.bytes_of, self.tokens(text))).decode(), text)
        byte = self.tokenizer.convert_tokens_to_ids("Ģ")
        self.assertEqual((names.bytes_of(byte), names.string_of(byte)), (b"\x80", "\\x80"))
        self.assertEqual(names.string_of(100_000), "")


if __name__ == "__main__":
    unittest.main()
