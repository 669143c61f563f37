"""Tokens as text: decoding, stop strings, and what a single token looks like.

Promises: a row's text is what the tokenizer makes of all its tokens at once, special tokens included, so it does not
matter when or in how many pieces they were generated. Stop strings are searched in that text, never among token ids;
`StopWatch` only tells cheaply at which token it is worth looking, and depends on the tokens alone.
"""

# A character has at most four bytes, so at most four tokens: more that still end undecodable never will be decodable.
_MAX_HELD_TOKENS = 4

_UNDECODABLE = "\ufffd"


class Pieces:
    """The text that each further token adds, held back while a character is incomplete.

    Works with any tokenizer: it decodes the last few tokens with and without the new one, because what a token looks
    like depends on its neighbours (leading spaces, characters cut by token borders).
    """

    def __init__(self, decode):
        self._decode = decode
        self._window = []
        self._settled = 0
        self._settled_text = ""

    def add(self, token):
        """The text that became certain with this token; may be empty."""
        self._window.append(token)
        text = self._decode(self._window)
        held = len(self._window) - self._settled
        if held < _MAX_HELD_TOKENS and (text.endswith(_UNDECODABLE) or len(text) <= len(self._settled_text)):
            return ""
        piece = text[len(self._settled_text) :]
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._settled_text = self._decode(self._window)
        return piece


class StopWatch:
    """Says at which token a stop string may have been completed."""

    def __init__(self, stops, decode):
        self._stops = stops
        self._pieces = Pieces(decode)
        self._tail = ""
        self._keep = max(map(len, stops)) - 1

    def add(self, token):
        """True when the text up to this token seems to hold a stop string: look with `find_stop`."""
        piece = self._pieces.add(token)
        if not piece:
            return False
        text = self._tail + piece
        self._tail = text[-self._keep :] if self._keep else ""
        return any(stop in text for stop in self._stops)


def find_stop(text, stops):
    """Where the first stop string begins in the text, or -1."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return min(found, default=-1)


class TokenNames:
    """Single tokens as OpenAI's logprobs show them: a string, and its bytes where the string cannot hold them."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._known = {}

    def bytes_of(self, token):
        """The token's bytes."""
        value = self._known.get(token)
        if value is None:
            value = self._known[token] = self._look_up(token)
        return value

    def string_of(self, token):
        """The token's text, with bytes that are no whole character spelled as in OpenAI's answers ("\\xf0\\x9f")."""
        value = self.bytes_of(token)
        try:
            return value.decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in value)

    def _look_up(self, token):
        text = self._tokenizer.decode([token])
        if _UNDECODABLE not in text:
            # Decoding a word on its own drops the space before it where the vocabulary marks spaces with U+2581.
            name = self._tokenizer.convert_ids_to_tokens(token)
            return (" " + text if name and name.startswith("\u2581") and not text.startswith(" ") else text).encode()
        name = self._tokenizer.convert_ids_to_tokens(token) or ""
        if len(name) == 6 and name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in name)
        except KeyError:
            return text.encode()


def _byte_alphabet():
    """The characters that byte-level vocabularies write bytes with (GPT-2's encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
