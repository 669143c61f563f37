"""What a rank is told about its gang.

Promises: everything in the "gang" and "canary" parts of `init` is checked here, before anything is connected or loaded,
and what does not fit is a `MalformedCommand` that names the field; the texts of a gang never carry its secret.

A gang is N worker processes with one model. In a pipeline rank 0 holds the last layers, as in mlx-lm, so it has the head,
draws the tokens and writes the results; the highest rank holds the first layers and the embeddings. In tensor mode every
rank holds a part of every layer, and rank 0 leads all the same.
"""

from dataclasses import dataclass, field

from protocol import MalformedCommand

PIPELINE, TENSOR = "pipeline", "tensor"
MODES = (PIPELINE, TENSOR)
# The name a plan gives a backend, and the one MLX knows it by; whether JACCL is a mesh or a ring is MLX_JACCL_RING's to say.
BACKENDS = {"ring": "ring", "jaccl": "jaccl", "jaccl-ring": "jaccl"}
# As much as a nonce of SHA-256 needs to be beyond guessing.
MIN_SECRET_BYTES = 16
# Enough to tell models apart, little enough to cost no time: a step each.
DEFAULT_CANARY_TOKENS = 8
# A canary is no job.
MAX_CANARY_TOKENS = 256


@dataclass(frozen=True)
class Canary:
    """A prompt whose greedy answer shows whether the model computes what it should."""

    # None: a fixed prompt made from the size of the vocabulary (canary.default_prompt).
    tokens: tuple | None = None
    max_tokens: int = DEFAULT_CANARY_TOKENS
    # None where no answer is on record.
    expect: tuple | None = None


@dataclass(frozen=True)
class Gang:
    """The "gang" part of `init`."""

    mode: str
    backend: str
    rank: int
    world_size: int
    # (first layer, end) of each rank, in rank order; empty in tensor mode.
    spans: tuple
    # Where rank 0 listens: (address, port).
    control: tuple
    secret: bytes = field(repr=False)
    rendezvous_timeout_s: float = 60.0
    canary: Canary = Canary()

    @property
    def leads(self):
        return self.rank == 0

    @property
    def span(self):
        return self.spans[self.rank]

    @property
    def control_text(self):
        address, port = self.control
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_gang(command):
    """`Gang` of an `init` command, None where it has none; raises `MalformedCommand`."""
    given = command.get("gang")
    world_size, rank = _integer(command, "world_size", 1, "init", 1), _integer(command, "rank", 0, "init", 0)
    if given is None:
        if world_size != 1 or rank != 0:
            raise MalformedCommand(f'init is for rank {rank} of {world_size} and has no "gang"')
        return None
    if not isinstance(given, dict):
        raise MalformedCommand('"gang" of init must be an object')
    gang = Gang(
        mode=_one_of(given, "mode", MODES),
        backend=_one_of(given, "backend", BACKENDS),
        rank=_integer(given, "rank", 0),
        world_size=_integer(given, "world_size", 2),
        spans=_spans(given),
        control=_control(given),
        secret=_secret(given),
        rendezvous_timeout_s=_integer(given, "rendezvous_timeout_ms", 1) / 1000,
        canary=parse_canary(given.get("canary"), '"canary" of "gang"') or Canary(),
    )
    if gang.rank >= gang.world_size:
        raise MalformedCommand(f"rank {gang.rank} cannot be of a gang of {gang.world_size}")
    if (rank, world_size) != (gang.rank, gang.world_size):
        raise MalformedCommand(
            f"init says rank {rank} of {world_size}, and its gang rank {gang.rank} of {gang.world_size}"
        )
    _check_spans(gang)
    return gang


def parse_canary(given, where='"canary" of init'):
    """`Canary`, None where there is none; raises `MalformedCommand`."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise MalformedCommand(f"{where} must be an object")
    max_tokens = _integer(given, "max_tokens", 1, where, DEFAULT_CANARY_TOKENS)
    if max_tokens > MAX_CANARY_TOKENS:
        raise MalformedCommand(f'"max_tokens" of {where} must be {MAX_CANARY_TOKENS} at most')
    return Canary(
        tokens=_tokens(given.get("tokens"), f'"tokens" of {where}'),
        max_tokens=max_tokens,
        expect=_tokens(given.get("expect"), f'"expect" of {where}'),
    )


def _tokens(given, where):
    if given is None:
        return None
    if not isinstance(given, list) or not given or any(not _is_integer(token) or token < 0 for token in given):
        raise MalformedCommand(f"{where} must be a list of token ids, or null")
    return tuple(given)


def _spans(given):
    spans = given.get("layers", [])
    if not isinstance(spans, list) or any(
        not isinstance(span, list) or len(span) != 2 or not all(map(_is_integer, span)) for span in spans
    ):
        raise MalformedCommand('"layers" of "gang" must be a list of [first, end] pairs')
    return tuple(tuple(span) for span in spans)


def _check_spans(gang):
    """Every layer once: the highest rank begins at 0, and each rank goes on where the one above it ends."""
    if gang.mode == TENSOR:
        if gang.spans:
            raise MalformedCommand('"layers" of "gang" must be empty in tensor mode')
        return
    if len(gang.spans) != gang.world_size:
        raise MalformedCommand(f'"layers" of "gang" has {len(gang.spans)} spans for {gang.world_size} ranks')
    expected = 0
    for rank in reversed(range(gang.world_size)):
        first, end = gang.spans[rank]
        if first != expected or end <= first:
            raise MalformedCommand(
                f'"layers" of "gang" gives rank {rank} the span [{first}, {end}], which does not go on at layer {expected}'
            )
        expected = end


def _control(given):
    text = given.get("control")
    address, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not address or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise MalformedCommand('"control" of "gang" must be "ip:port"')
    return address.removeprefix("[").removesuffix("]"), int(port)


def _secret(given):
    text = given.get("secret")
    try:
        secret = bytes.fromhex(text)
    except (TypeError, ValueError):
        secret = b""
    if len(secret) < MIN_SECRET_BYTES:
        raise MalformedCommand(f'"secret" of "gang" must be hexadecimal, {MIN_SECRET_BYTES} bytes at least')
    return secret


def _one_of(given, name, choices):
    value = given.get(name)
    if not isinstance(value, str) or value not in choices:
        raise MalformedCommand(f'"{name}" of "gang" must be one of {", ".join(choices)}')
    return value


def _integer(given, name, least, where='"gang"', otherwise=None):
    value = given.get(name, otherwise)
    if not _is_integer(value) or value < least:
        raise MalformedCommand(f'"{name}" of {where} must be an integer of at least {least}')
    return value


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)
