"""How two ranks of a gang prove to each other that they are of it.

Promises: the secret is never sent; each side proves that it knows it over a number the other has just drawn, so nothing
heard on the wire serves again; a secret is drawn anew for each epoch, so a rank of an older gang is a stranger; nothing a
stranger sends is read beyond a fixed few bytes, nor waited for longer than `LIMIT_S`.

    rank 0                      rank r
      ── magic, nonce a ──────────▶
      ◀── r, nonce b, mac("follower", a, b, r) ──
      ── "A", mac("leader", b, a, r) ──▶          or a letter that says why not
"""

import hashlib
import hmac
import secrets
import struct
import time

MAGIC = b"NSGANG1\n"
# A round trip between two machines that do nothing else takes milliseconds; a stranger may not hold a place for long.
LIMIT_S = 5.0

_NONCE_BYTES = 32
_MAC_BYTES = 32
_RANK = struct.Struct(">I")
_ANSWER_BYTES = 1 + _MAC_BYTES
_ADMITTED, _STRANGER, _TAKEN = b"A", b"S", b"T"


class Refused(Exception):
    """The other side is no member of this gang, or this one is none to it. `final`: trying again cannot help."""

    def __init__(self, message, final=True):
        super().__init__(message)
        self.final = final


def admit(connection, secret, is_free):
    """Rank 0's side. Returns the rank that has come; raises `Refused` or OSError. `is_free(rank)` takes the place."""
    until = time.monotonic() + LIMIT_S
    ours = secrets.token_bytes(_NONCE_BYTES)
    _send(connection, MAGIC + ours, until)
    hello = _receive(connection, _RANK.size + _NONCE_BYTES + _MAC_BYTES, until)
    [rank] = _RANK.unpack_from(hello)
    theirs, mac = hello[_RANK.size : -_MAC_BYTES], hello[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(secret, b"follower", ours, theirs, rank)):
        _send(connection, _STRANGER + bytes(_MAC_BYTES), until)
        raise Refused("it does not know this gang's secret")
    if not is_free(rank):
        _send(connection, _TAKEN + bytes(_MAC_BYTES), until)
        raise Refused(f"it says it is rank {rank}, which is not awaited")
    _send(connection, _ADMITTED + _mac(secret, b"leader", theirs, ours, rank), until)
    return rank


def join(connection, secret, rank):
    """Another rank's side; raises `Refused` or OSError."""
    until = time.monotonic() + LIMIT_S
    greeting = _receive(connection, len(MAGIC) + _NONCE_BYTES, until)
    if not greeting.startswith(MAGIC):
        raise Refused("what listens there is no rank 0 of a gang", final=False)
    theirs, ours = greeting[len(MAGIC) :], secrets.token_bytes(_NONCE_BYTES)
    _send(connection, _RANK.pack(rank) + ours + _mac(secret, b"follower", theirs, ours, rank), until)
    answer = _receive(connection, _ANSWER_BYTES, until)
    letter, mac = answer[:1], answer[1:]
    if letter == _STRANGER:
        raise Refused("rank 0 does not accept this rank's secret: they are not of the same gang")
    if letter == _TAKEN:
        raise Refused(f"rank 0 does not await a rank {rank}, or has one already")
    if letter != _ADMITTED or not hmac.compare_digest(mac, _mac(secret, b"leader", ours, theirs, rank)):
        raise Refused("what answers as rank 0 does not know this gang's secret")


def _mac(secret, role, asked, answered, rank):
    return hmac.digest(secret, b"\n".join((MAGIC, role, asked, answered, _RANK.pack(rank))), hashlib.sha256)


def _send(connection, data, until):
    connection.settimeout(max(0.001, until - time.monotonic()))
    connection.sendall(data)


def _receive(connection, count, until):
    """Exactly so many bytes. The limit holds for all of them together: a trickle does not buy time."""
    data = b""
    while len(data) < count:
        connection.settimeout(max(0.001, until - time.monotonic()))
        part = connection.recv(count - len(data))
        if not part:
            raise Refused("the connection was closed amid the greeting", final=False)
        data += part
    return data
