"""Rank 0 of a gang: a worker that takes the other ranks along.

Promises: to agent and engine it is a worker as any other; a rank that is lost ends it with class link_fault within a second
while it idles and within channel.GRACE_S while it computes, its checkpoints written first; the others hear when there is
nothing to do and when all is done, and are waited for, so that no rank sees another vanish in an orderly end.
"""

import mlx.core as mx

from worker import Worker

# The others have one step to finish, of which they all know; a prompt's step of a large model takes seconds.
END_LIMIT_S = 30.0


class Leader(Worker):
    """`formed`: the gang (formation.Formed)."""

    def __init__(self, engine, inbox, events, terminated, formed):
        super().__init__(engine, inbox, events, terminated)
        self._channel = formed.channel
        self._computes = False
        self._said_idle = False
        self._channel.before_the_end(self._save)

    def run(self):
        super().run()
        mx.synchronize(self._engine.stream)
        self._channel.end(END_LIMIT_S)

    def _take_commands(self):
        self._channel.check()
        idle = not self._engine.has_work()
        if idle and not self._said_idle:
            self._channel.announce({"op": "idle"})
        self._said_idle = idle
        super()._take_commands()

    def _step(self):
        self._computes = True
        super()._step()
        self._computes = False

    def _save(self):
        """Called from another thread when this one is blocked in a step: the tokens so far are plain numbers."""
        if self._computes:
            self._engine.checkpoint_news()
