"""What may be asked for, in OpenAI's words and a few of ours: the fields, their types and bounds.

In: a JSON object or the fields of a form. Out: a checked body, or a `Problem`. These classes are also what the OpenAPI
document says. A field that is not here is refused. Refuses to know: pictures, the model, the server's own bounds.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kandinsky5.geometry import FitKind
from kandinsky5.request import (
    MAX_GUIDANCE,
    MAX_LORA_WEIGHT,
    MAX_LORAS,
    MAX_NAME_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_STEPS,
)
from kandinsky5.server.problems import Problem, of_validation, unknown_parameter

LARGEST_COUNT = 10
MOST_PARTIAL_IMAGES = 3
"""OpenAI's bounds."""

HIGHEST_PRIORITY = 9

OBJECTS = ("lora",)
"""Fields that are JSON objects."""

MOST_ENTRIES = 64
"""Of one object or list in a body; none that is in order has half as many."""

_SIZE = re.compile("auto|[0-9]{1,4}x[0-9]{1,4}")


def _written(size: str) -> str:
    if not _SIZE.fullmatch(size):
        raise ValueError("it must be WIDTHxHEIGHT, such as 1024x1024, or auto")
    return size


def _inside(url: str) -> str:
    if not url.startswith("data:"):
        raise ValueError(
            "it must be a data url in base64, such as data:image/png;base64,...; nothing is fetched"
        )
    return url


Size = Annotated[
    str,
    AfterValidator(_written),
    Field(
        json_schema_extra={"pattern": f"^({_SIZE.pattern})$"},
        description="WIDTHxHEIGHT in pixels, multiples of 16, or auto: the model's own size; for an edit, of its "
        "sizes the one nearest to the source in shape.",
    ),
]


class DrawingFields(BaseModel):
    """What pictures from text and edits have in common."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
    model: Annotated[str | None, Field(description="What /v1/models lists; that one if left out.")] = None
    n: Annotated[int | None, Field(ge=1, le=LARGEST_COUNT, description="Pictures; 1 if left out.")] = None
    size: Size | None = None
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "standard", "hd"] | None,
        Field(
            description="Steps: low is half of the model's own, high and hd one and a half times, everything else the "
            "model's own. Leave it out when steps are given."
        ),
    ] = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of jpeg and webp; a png is always exact.")
    ] = None
    background: Annotated[
        Literal["auto", "opaque"] | None, Field(description="Pictures have no transparency.")
    ] = None
    user: Annotated[
        str | None,
        Field(max_length=256, description="Written to the log, and sent back as safety_identifier."),
    ] = None
    safety_identifier: Annotated[str | None, Field(max_length=256, description="The newer name of user.")] = (
        None
    )
    negative_prompt: Annotated[
        str | None, Field(max_length=MAX_PROMPT_CHARACTERS, description="What to keep away from.")
    ] = None
    steps: Annotated[int | None, Field(ge=1, le=MAX_STEPS)] = None
    guidance: Annotated[float | None, Field(ge=0, le=MAX_GUIDANCE)] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description="Picture i of n is drawn with seed + i.")
    ] = None
    lora: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)],
            Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)],
        ]
        | None,
        Field(
            max_length=MAX_LORAS,
            description="Adapters to draw with, by the names that /v1/models lists, and their weights; in a form each "
            "is a field of its own, lora[NAME], as the openai package writes it.",
        ),
    ] = None
    expand_prompt: Annotated[
        bool | None,
        Field(
            description="Have the text encoder write the prompt out first; revised_prompt is what was drawn."
        ),
    ] = None
    priority: Annotated[
        int | None,
        Field(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY, description="Among this key's own requests."),
    ] = None


class AnswerFields(DrawingFields):
    """How a request that waits for its pictures wants them."""

    response_format: Annotated[
        Literal["b64_json", "url"] | None, Field(description="b64_json if left out; a url expires.")
    ] = None
    stream: Annotated[bool | None, Field(description="Server-sent events; for one picture.")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=MOST_PARTIAL_IMAGES)] = None


class ImageReference(BaseModel):
    """A picture inside a JSON body."""

    model_config = ConfigDict(extra="forbid")

    image_url: Annotated[
        str,
        AfterValidator(_inside),
        Field(
            json_schema_extra={"pattern": "^data:"},
            description="A data url in base64. Nothing is fetched from elsewhere.",
        ),
    ]


class EditFields(BaseModel):
    """What only edits have, beside their files."""

    fit: Annotated[
        FitKind | None,
        Field(description="How a source of another shape comes to the size; cover if left out."),
    ] = None


class JsonSources(BaseModel):
    """The pictures of an edit in a JSON body."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=16)]
    mask: Annotated[
        ImageReference | None,
        Field(
            description="A picture with transparency, as large as the source; transparent means: edit here."
        ),
    ] = None


class GenerationBody(AnswerFields):
    """POST /v1/images/generations."""


class EditForm(AnswerFields, EditFields):
    """POST /v1/images/edits as multipart/form-data, beside the files image (or image[]) and mask."""


class EditBody(EditForm, JsonSources):
    """POST /v1/images/edits as JSON."""


class GenerationJobBody(DrawingFields):
    """POST /v1/jobs/generations."""


class EditJobForm(DrawingFields, EditFields):
    """POST /v1/jobs/edits as multipart/form-data."""


class EditJobBody(EditJobForm, JsonSources):
    """POST /v1/jobs/edits as JSON."""


Body = TypeVar("Body", bound=DrawingFields)


def of_json(kind: type[Body], fields: Any) -> Body:
    """A body from a JSON value, whose types must be right. Raises Problem."""
    if not isinstance(fields, dict):
        raise Problem(
            400, f"The body must be a JSON object, not {type(fields).__name__}.", code="invalid_json"
        )
    _check_names(kind, fields)
    for name, value in fields.items():
        _check_width(name, value)
    try:
        return kind.model_validate(fields, strict=True)
    except ValidationError as error:
        raise of_validation(error) from None


def of_form(kind: type[Body], fields: Mapping[str, str]) -> Body:
    """A body from the texts of a form, where a part of an object is a field `name[part]`. Raises Problem."""
    whole = _with_objects(fields)
    _check_names(kind, whole)
    try:
        return kind.model_validate(whole)
    except ValidationError as error:
        raise of_validation(error) from None


def _check_names(kind: type[Body], fields: Mapping[str, Any]) -> None:
    """Refuse the first field that is not there: pydantic would collect an error for each."""
    for name in fields:
        if name not in kind.model_fields:
            raise unknown_parameter(name)


def _check_width(name: str, value: Any) -> None:
    """Refuse what is wide at any depth, for the same reason: an error for each of 100,000 entries is of no use."""
    level = [value]
    while level:
        inner: list[Any] = []
        for part in level:
            if not isinstance(part, dict | list):
                continue
            if len(part) > MOST_ENTRIES:
                message = (
                    f"Invalid value for {name!r}: {len(part)} entries in one list or object are too many."
                )
                raise Problem(400, message, code="invalid_value", param=name)
            inner += part.values() if isinstance(part, dict) else part
        level = inner


def _with_objects(fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields, those that are parts of an object put into one."""
    whole: dict[str, Any] = {}
    objects: dict[str, dict[str, str]] = {}
    for field, text in fields.items():
        name, bracket, part = field.removesuffix("]").partition("[")
        if bracket and field.endswith("]") and name in OBJECTS:
            objects.setdefault(name, {})[part] = text
        else:
            whole[field] = text
    return {**whole, **objects}
