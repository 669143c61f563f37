"""mlx-lm's batch generator, with the two things it does not tell and the one bound it does not keep.

Promises: no more than `completion_batch_size` rows are read and generated at any time (mlx-lm counts only those being
generated, so rows whose prompts take several steps come on top); `on_begin` hears of rows just before their prompts are
read, so that a step which ends the process leaves behind whose fault it may have been; a sampler with `about_to_draw`
hears whose log-probabilities it gets next, in order.

Rests on names inside mlx-lm 0.32.2 (`_make_batch`, `_step`); the runtime pins that version.
"""

from itertools import islice

from mlx_lm.generate import BatchGenerator, GenerationBatch


class Generator(BatchGenerator):
    """Rows may be inserted ahead of need: one begins in the very step in which another ends."""

    def __init__(self, network, on_begin, **options):
        super().__init__(network, **options)
        self._on_begin = on_begin

    def row_counts(self):
        """(rows not begun, rows in work)."""
        return len(self._unprocessed_sequences), len(self._prompt_batch) + len(self._generation_batch)

    def _make_batch(self, n):
        room = self.completion_batch_size - len(self._generation_batch) - len(self._prompt_batch)
        n = min(n, room)
        if n > 0:
            self._on_begin([sequence[0] for sequence in islice(self._unprocessed_sequences, n)])
        return super()._make_batch(n)


def _announce_rows():
    """Wraps a step of the batch so that its sampler learns the order of the rows.

    A sampler is a function of log-probabilities alone in mlx-lm, and one sampler a row (which would know its row) makes
    the batch draw row by row, which costs a small model a quarter of its speed at eight rows.
    """
    step = GenerationBatch._step

    def announced(batch):
        about_to_draw = getattr(batch.fallback_sampler, "about_to_draw", None)
        if about_to_draw is not None:
            about_to_draw(batch.uids)
        return step(batch)

    GenerationBatch._step = announced


_announce_rows()
