"""Loads the model: a directory, or a name on the model hub.

Promises: what cannot be loaded ends in a `Fatal` of class model_unreadable (the files) or model_unsupported (the
architecture) with one sentence that says what to do; no code from a model directory is run; weights are brought into
memory piece by piece, so that signals are heeded meanwhile and no single GPU command touches all of them (FIELD-NOTES 3).
"""

import json
import os
import pathlib
from dataclasses import dataclass

import faults
from text import TokenNames

# One evaluation a piece: large enough to keep the disk busy, small enough to end within a second or so.
PIECE_BYTES = 1 << 30

# Where configurations say how many positions the model was made for.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


@dataclass
class Model:
    """A loaded model with what the worker needs to know about it."""

    network: object
    tokenizer: object
    # What answers are signed with: a directory's last part, or the hub name.
    name: str
    model_type: str
    vocab_size: int
    # None where the configuration does not say.
    context_tokens: int | None
    has_chat_template: bool
    eos_tokens: frozenset
    names: TokenNames


def load(name, part_of=None):
    """Loads the model, or a rank's part of it (see `_settle`); raises `faults.Fatal`."""
    local, directory, utils = _find(name)
    try:
        network, tokenizer, config = utils.load(directory, lazy=True, return_config=True)
        network = _settle(network, config, part_of)
    except faults.Fatal:
        raise
    except Exception as error:
        raise _fatal(error, name) from error
    return Model(
        network=network,
        tokenizer=tokenizer,
        name=os.path.basename(os.path.normpath(local)) if local else name,
        model_type=str(config["model_type"]),
        vocab_size=_first(config, ("vocab_size",)) or len(tokenizer),
        context_tokens=_first(config, _CONTEXT_KEYS),
        has_chat_template=bool(tokenizer.has_chat_template),
        eos_tokens=frozenset(tokenizer.eos_token_ids),
        names=TokenNames(tokenizer),
    )


def load_part(name, part_of):
    """(network, model_type) of a rank that has no use for a tokenizer; raises `faults.Fatal`."""
    _, directory, utils = _find(name)
    try:
        network, config = utils.load_model(pathlib.Path(directory), lazy=True)
        return _settle(network, config, part_of), str(config["model_type"])
    except faults.Fatal:
        raise
    except Exception as error:
        raise _fatal(error, name) from error


def _find(name):
    """(the directory if it was named, the directory there is, mlx_lm.utils)."""
    local = _directory(name)
    # Late, because it takes seconds and the agent wants a sign of life before.
    from mlx_lm import utils

    directory = local or _from_hub(name, utils)
    _check_config(directory)
    return local, directory, utils


def _settle(network, config, formed):
    """What the generator runs, its weights in memory: the network, or this rank's part (formation.Formed)."""
    if formed is None:
        from mlx.utils import tree_flatten

        _bring_in([weight for _, weight in tree_flatten(network.parameters())])
        return network
    if formed.gang.spans:
        import pipeline

        part = pipeline.Stage(network, formed.gang, formed.group)
        _bring_in(part.weights())
        return part
    import tensor

    part = tensor.Share(network, config, formed.gang, formed.group)
    # Each weight is read whole and cut, so that as many bytes pass through memory.
    _bring_in(part.weights(), PIECE_BYTES // formed.gang.world_size)
    return part


def _directory(name):
    """The model's directory, or None where `name` is one of the hub."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise faults.Fatal(faults.MODEL_UNREADABLE, f"the model {name} is a file; give the directory it lies in")
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise faults.Fatal(faults.MODEL_UNREADABLE, f"there is no model directory {name} on this node")
    return None


def _from_hub(name, utils):
    """The directory in the hub's cache, filled from the hub where it is in reach."""
    try:
        return str(utils._download(name))
    except Exception as error:
        message = (
            f'the model "{name}" is no directory here and could not be had from the model hub: download it to this node '
            f"while the hub is in reach, or give a directory ({faults.describe(error)})"
        )
        raise faults.Fatal(faults.MODEL_UNREADABLE, message) from error


def _check_config(directory):
    """The commonest faults, named before the libraries name them in their own words."""
    path = os.path.join(directory, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except FileNotFoundError:
        raise faults.Fatal(faults.MODEL_UNREADABLE, f"the directory {directory} holds no config.json, so no model") from None
    except (OSError, ValueError) as error:
        raise faults.Fatal(faults.MODEL_UNREADABLE, f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise faults.Fatal(faults.MODEL_UNREADABLE, f'{path} names no "model_type"')


def _bring_in(weights, piece_bytes=PIECE_BYTES):
    import mlx.core as mx

    piece, size = [], 0
    for weight in weights:
        piece.append(weight)
        size += weight.nbytes
        if size >= piece_bytes:
            mx.eval(piece)
            piece, size = [], 0
    mx.eval(piece)


def _first(config, keys):
    """The first positive integer under one of the keys, also inside a multimodal model's text part."""
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for key in keys:
            value = part.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _fatal(error, name):
    text = str(error)
    if isinstance(error, ValueError) and text.startswith("Model type ") and text.endswith(" not supported."):
        return faults.Fatal(faults.MODEL_UNSUPPORTED, f"mlx-lm does not know the architecture of {name}: {text}")
    if "requires importing and running a custom module" in text or "trust_remote_code" in text:
        message = f"the model {name} needs code of its own to run, and workers run none: use another model"
        return faults.Fatal(faults.MODEL_UNSUPPORTED, message)
    fault = faults.classify(error, otherwise=faults.MODEL_UNREADABLE)
    return faults.Fatal(fault, f"the model {name} could not be loaded: {faults.describe(error)}")
