import unittest
from collections import Counter

import support  # noqa: F401  (finds the modules)
import mlx.core as mx
import sampling
from request import Request

VOCAB = 64


def draw(seed=1, position=0, **fields):
    return sampling.Draw(Request(chat=False, prompt="x", **fields), seed, position)


def logprobs(rows, seed=0):
    logits = 2 * mx.random.normal((rows, VOCAB), key=mx.random.key(seed))
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def tokens(draws, given):
    """What one call draws for these rows."""
    sampler = sampling.BatchSampler()
    for uid, one in enumerate(draws):
        sampler.enter(uid, one)
    sampler.about_to_draw(list(range(len(draws))))
    return sampler(given).tolist()


class Draws(unittest.TestCase):
    def test_a_draw_depends_on_seed_and_position_and_not_on_the_batch(self):
        given = logprobs(1)
        others = [draw(seed=9, temperature=1.7), draw(temperature=0), draw(top_p=0.5), draw(top_k=3), draw(min_p=0.2)]
        for fields in ({}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.05}, {"temperature": 0}):
            for position in range(20):
                alone = tokens([draw(5, position, **fields)], given)[0]
                for at in range(len(others) + 1):
                    batch = [*others[:at], draw(5, position, **fields), *others[at:]]
                    beside = logprobs(len(others), 7)
                    together = mx.concatenate([beside[:at], given, beside[at:]])
                    self.assertEqual(tokens(batch, together)[at], alone, (fields, position, at))

    def test_a_row_that_goes_on_elsewhere_draws_what_it_would_have_drawn(self):
        sampler = sampling.BatchSampler()
        sampler.enter(3, draw(seed=11))
        undisturbed = []
        for position in range(30):
            sampler.about_to_draw([3])
            undisturbed += sampler(logprobs(1, position)).tolist()
        resumed = [tokens([draw(11, position)], logprobs(1, position))[0] for position in range(30)]
        self.assertEqual(resumed, undisturbed)
        self.assertGreater(len(set(undisturbed)), 5)

    def test_different_seeds_draw_differently(self):
        given = logprobs(1)
        drawn = {tuple(tokens([draw(seed, p)], given)[0] for p in range(10)) for seed in range(50)}
        self.assertEqual(len(drawn), 50)

    def test_frequencies_are_the_models(self):
        count = 20_000
        one = logprobs(1)
        for temperature in (1.0, 0.5):
            given = mx.broadcast_to(one, (count, VOCAB))
            drawn = Counter(tokens([draw(seed, temperature=temperature) for seed in range(count)], given))
            expected = mx.softmax(one / temperature, axis=-1)[0].tolist()
            for token, probability in enumerate(expected):
                self.assertAlmostEqual(drawn[token] / count, probability, delta=0.02)

    def test_temperature_zero_and_its_like_take_the_likeliest(self):
        given = logprobs(8)
        likeliest = mx.argmax(given, axis=-1).tolist()
        for fields in ({"temperature": 0}, {"temperature": 1e-9}, {"top_p": 0.0}, {"top_k": 1}):
            self.assertEqual(tokens([draw(s, **fields) for s in range(8)], given), likeliest)

    def test_filters_leave_what_they_name(self):
        given = logprobs(1)
        ranked = sorted(range(VOCAB), key=lambda token: -given[0, token].item())
        probability = mx.exp(given)[0].tolist()
        nucleus, mass = set(), 0.0
        for token in ranked:
            if mass >= 0.6:
                break
            nucleus.add(token)
            mass += probability[token]
        allowed = {
            "top_k": (4, set(ranked[:4])),
            "top_p": (0.6, nucleus),
            "min_p": (0.3, {t for t in ranked if probability[t] >= 0.3 * probability[ranked[0]]}),
        }
        for name, (value, expected) in allowed.items():
            many = mx.broadcast_to(given, (3000, VOCAB))
            self.assertEqual(set(tokens([draw(s, **{name: value}) for s in range(3000)], many)), expected, name)

    def test_a_top_k_beyond_the_vocabulary_is_none(self):
        given = logprobs(1)
        self.assertEqual(tokens([draw(top_k=10**6)], given), tokens([draw()], given))

    def test_rows_without_a_seed_get_one_from_job_and_row(self):
        request = Request(chat=False, prompt="x")
        seeds = [sampling.seed_of(request, "j7", row) for row in range(100)]
        self.assertEqual(len(set(seeds)), 100)
        self.assertEqual(seeds[3], sampling.seed_of(request, "j7", 3))
        self.assertNotEqual(seeds[3], sampling.seed_of(request, "j8", 3))
        self.assertEqual(sampling.seed_of(Request(chat=False, prompt="x", seed=5), "j7", 3), 5)


if __name__ == "__main__":
    unittest.main()
