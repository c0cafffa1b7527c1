"""A JSON file that must be an object, or one line that says why it is not.

Comes in: a path. Goes out: a dict. It refuses to know what the keys mean.
"""

import json
from pathlib import Path
from typing import Any

from kandinsky5.errors import CheckpointError

MAX_BYTES = 64 * 2**20
"""Qwen's tokenizer.json, the largest that is published, has 11 MB."""


def read_object(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        infinite: take Infinity and -Infinity, which are no JSON: diffusers writes them into schedulers' configs.

    Raises:
        CheckpointError: a file that is missing, unreadable, absurdly large, no JSON, or no object.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, which no JSON file of a checkpoint has.")
        text = path.read_text(encoding="utf-8")
    except CheckpointError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return parse_object(text, str(path), infinite=infinite)


def parse_object(text: str, name: str, *, infinite: bool = False) -> dict[str, Any]:
    """The JSON object in a text; `name` says in errors where it stood. A key twice is an error, not the last value.

    `infinite` as for `read_object`.

    Raises:
        CheckpointError: no JSON, no object, a key twice.
    """
    try:
        content = json.loads(
            text,
            object_pairs_hook=lambda pairs: _without_repeats(pairs, name),
            parse_constant=lambda word: _constant(word, name, infinite),
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {reason(error)}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} must be a JSON object, not {type(content).__name__}.")
    return content


def reason(error: BaseException) -> str:
    """What an error says, on one line of at most 400 characters."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _constant(word: str, name: str, infinite: bool) -> float:
    """What JSON has no numbers for: Infinity, -Infinity, NaN."""
    if infinite and word != "NaN":
        return float(word)
    raise CheckpointError(f"{name} has the value {word}, which is no JSON.")


def _without_repeats(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise CheckpointError(f"{name} has the key {key[:200]!r} twice.")
            seen.add(key)
    return content
