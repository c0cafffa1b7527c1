"""What a person asks for: a prompt or an instruction, its settings, and the bounds within which they make sense.

In: the settings by name, or the JSON object stored in a picture. Out: an `ImageRequest`, or for an edit an
`EditRequest`, that is valid; or a RequestError. `None` is "the checkpoint's own default"; the engine resolves it.
Refuses to know: checkpoints, tensors, files, and the source picture itself, of which it has the hash.
"""

import dataclasses
import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FIT_KINDS, FitKind, check_size

MAX_PROMPT_CHARACTERS: Final = 20_000
"""Far above what 1024 tokens hold; a limit so that a stray file is refused before it is tokenised."""

MAX_STEPS: Final = 1000
MAX_COUNT: Final = 64
MAX_GUIDANCE: Final = 50.0
MAX_SEED: Final = 2**64 - 1
"""The largest seed `torch.Generator.manual_seed` takes."""

CHOSEN_SEED_BITS: Final = 32
"""Seeds chosen for a person stay short enough to read aloud, and exact in JSON readers that use doubles."""

MAX_TEXT_TOKENS: Final = 1024
"""Rotary positions of the text (authors' network)."""

MAX_LORAS: Final = 16
MAX_LORA_WEIGHT: Final = 10.0
MAX_NAME_CHARACTERS: Final = 200


_HASH: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One prompt and how to draw it. Raises RequestError when built with a value that cannot be carried out.

    prompt: what the picture shows; not blank, at most `MAX_PROMPT_CHARACTERS`.
    negative_prompt: what guidance moves away from; empty is the trained default.
    width, height: pixels, multiples of 16 from 16 to 2048.
    steps: evaluations of the flow, 1 to `MAX_STEPS`.
    guidance: 0 to `MAX_GUIDANCE`; 1 or less runs no negative branch.
    seed: 0 to `MAX_SEED`; picture i of `count` is drawn with seed + i, so each can be had again alone.
    count: pictures, 1 to `MAX_COUNT`.
    max_sequence_length: text tokens kept of the prompt, 1 to `MAX_TEXT_TOKENS`.
    lora: names of adapters and their weights, at most `MAX_LORAS`, each from -`MAX_LORA_WEIGHT` to it; None is the
        network as it is. What a name stands for is the engine's.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    count: int = 1
    max_sequence_length: int | None = None
    lora: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora", _loras(self.lora))  # lists, as JSON has them, become tuples
        validate(self)

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture, in order. Raises RequestError while no seed is chosen."""
        if self.seed is None:
            raise RequestError("The request names no seed, so its pictures have none yet.")
        return [self.seed + index for index in range(self.count)]

    @property
    def noise_seeds(self) -> list[int]:
        """What the generator of each picture's noise starts from."""
        return self.seeds

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object; `from_dict` of it is equal to this request."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """A request from a JSON object.

        Raises RequestError for unknown fields, a missing prompt or invalid values.
        """
        if not isinstance(fields, Mapping):
            raise RequestError(f"A request is a JSON object, not {fields!r:.80}.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(str(name) for name in fields if name not in known)
        if unknown:
            raise RequestError(
                f"Unknown request field {', '.join(unknown)}; the fields are {', '.join(known)}."
            )
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING and field.name not in fields:
                raise RequestError(f"The request has no {field.name}.")
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class EditRequest(ImageRequest):
    """An instruction for a source picture. The picture travels beside the request, which names it by its hash.

    prompt: the instruction.
    source: SHA-256 of the source's size and pixels (`kandinsky5.pictures.content_hash`), 64 hexadecimal digits.
    fit: how a source of another shape is brought to the size.
    size_from: "source" takes width and height from the source's shape; None from the checkpoint's sizes, or as given.
    """

    source: str
    fit: FitKind = "cover"
    size_from: Literal["source"] | None = None

    @property
    def noise_seeds(self) -> list[int]:
        """Seeds with the source folded in.

        A source drawn from the same seed still holds the noise it came from; edited from that very noise it collapses
        (`docs/editing.md`).
        """
        return [_folded(seed, self.source) for seed in self.seeds]


def request_of(fields: Mapping[str, Any]) -> ImageRequest:
    """The request that a JSON object describes: an `EditRequest` if it names a source. Raises RequestError."""
    kind = EditRequest if isinstance(fields, Mapping) and "source" in fields else ImageRequest
    return kind.from_dict(fields)


def _folded(seed: int, source: str) -> int:
    """64 bits that depend on both, and on nothing else."""
    digest = hashlib.sha256(f"edit of {source} from {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def choose_seed() -> int:
    """A seed for a request that names none, from the system's randomness."""
    return secrets.randbits(CHOSEN_SEED_BITS)


def validate(request: ImageRequest) -> None:
    """Every rule about a request's values. Raises RequestError with the first that is broken."""
    _check_text("prompt", request.prompt)
    if not request.prompt.strip():
        raise RequestError("The prompt is empty; say what the picture shows.")
    _check_text("negative_prompt", request.negative_prompt)
    # The side that is not given will come from the checkpoint; the one that is can be judged beside itself.
    width = request.width if request.width is not None else request.height
    height = request.height if request.height is not None else request.width
    if width is not None and height is not None:
        check_size(width, height)
    _check_whole("steps", request.steps, 1, MAX_STEPS)
    _check_guidance(request.guidance)
    _check_whole("seed", request.seed, 0, MAX_SEED)
    if request.count is None:
        raise RequestError(f"count None is not a whole number from 1 to {MAX_COUNT}.")
    _check_whole("count", request.count, 1, MAX_COUNT)
    if request.seed is not None and request.seed + request.count - 1 > MAX_SEED:
        raise RequestError(
            f"seed {request.seed} with {request.count} pictures passes {MAX_SEED}; "
            f"the largest seed for this count is {MAX_SEED - request.count + 1}."
        )
    _check_whole("max_sequence_length", request.max_sequence_length, 1, MAX_TEXT_TOKENS)
    if isinstance(request, EditRequest):
        _check_edit(request)


def _check_edit(request: EditRequest) -> None:
    if not isinstance(request.source, str) or not _HASH.fullmatch(request.source):
        raise RequestError(f"source {request.source!r:.80} is not the SHA-256 of a picture, 64 hex digits.")
    if request.fit not in FIT_KINDS:
        raise RequestError(f"fit {request.fit!r:.80} is not one of {', '.join(FIT_KINDS)}.")
    if request.size_from not in (None, "source"):
        raise RequestError(f"size_from {request.size_from!r:.80} is not 'source', nor left out.")
    if request.size_from is not None and (request.width is not None or request.height is not None):
        raise RequestError("size_from 'source' chooses width and height; leave them out.")


def _loras(value: object) -> tuple[tuple[str, float], ...] | None:
    """Adapters as pairs of name and weight, from pairs of any kind; None for none of them. Raises RequestError."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or any(
        not isinstance(pair, list | tuple) or len(pair) != 2 for pair in value
    ):
        raise RequestError(f"lora {value!r:.80} is not a list of pairs of a name and a weight.")
    if len(value) > MAX_LORAS:
        raise RequestError(f"lora names {len(value)} adapters; at most {MAX_LORAS} are taken.")
    for name, weight in value:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise RequestError(f"lora {name!r:.80} is not the name of an adapter.")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and math.isfinite(weight) and abs(weight) <= MAX_LORA_WEIGHT):
            raise RequestError(
                f"lora {name!r:.80} has the weight {weight!r:.40}, which is not a number from {-MAX_LORA_WEIGHT:g} to "
                f"{MAX_LORA_WEIGHT:g}."
            )
    if len({name for name, _ in value}) < len(value):
        raise RequestError("lora names an adapter twice; give each one weight.")
    return tuple((name, float(weight)) for name, weight in value) or None


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{name} must be text, not {text!r:.80}.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"{name} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are accepted."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{name} is not valid Unicode text: {text!r:.80}; send it as UTF-8.") from None


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} {value!r:.80} is not a whole number from {low} to {high}.")


def _check_guidance(value: object) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and 0 <= value <= MAX_GUIDANCE):  # type: ignore[arg-type, operator]
        raise RequestError(f"guidance {value!r:.80} is not a number from 0 to {MAX_GUIDANCE:g}.")
