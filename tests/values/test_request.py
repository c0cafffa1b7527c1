import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky5.errors import RequestError
from kandinsky5.request import (
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    EditRequest,
    ImageRequest,
    choose_seed,
    request_of,
)

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
REQUESTS = st.builds(
    ImageRequest,
    prompt=TEXTS.filter(lambda text: bool(text.strip())),
    negative_prompt=TEXTS,
    width=st.none() | st.integers(1, 128).map(lambda n: n * 16),
    height=st.none() | st.integers(1, 128).map(lambda n: n * 16),
    steps=st.none() | st.integers(1, 1000),
    guidance=st.none() | st.floats(0, 50),
    seed=st.none() | st.integers(0, MAX_SEED - 63),
    count=st.integers(1, 64),
    max_sequence_length=st.none() | st.integers(1, 1024),
)


@given(REQUESTS)
def test_a_request_survives_json(request: ImageRequest) -> None:
    assert ImageRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_a_bare_prompt_leaves_everything_to_the_checkpoint() -> None:
    fields = ImageRequest(prompt="a red circle").to_dict()
    given_by_us = {"prompt": "a red circle", "negative_prompt": "", "count": 1}
    assert {name: value for name, value in fields.items() if value is not None} == given_by_us


def test_a_request_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImageRequest(prompt="a").prompt = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": " \n"}, "empty"),
        ({"prompt": None}, "prompt must be text, not None"),
        ({"prompt": ["a"]}, "prompt must be text"),
        ({"prompt": "a" * (MAX_PROMPT_CHARACTERS + 1)}, "20001 characters; at most 20000"),
        ({"prompt": "a\ud800"}, "not valid Unicode"),
        ({"negative_prompt": 3}, "negative_prompt must be text, not 3"),
        ({"negative_prompt": "a" * 20_001}, "negative_prompt has 20001"),
        ({"width": 1000}, "Width 1000 .* 992 or 1008"),
        ({"height": 1000}, "Width 1000|Height 1000"),
        ({"width": 1024, "height": 100_000}, "Height 100000 .* 2048"),
        ({"width": "1024"}, "Width '1024'"),
        ({"steps": 0}, "steps 0 is not a whole number from 1 to 1000"),
        ({"steps": 1001}, "steps 1001"),
        ({"steps": 2.0}, "steps 2.0"),
        ({"steps": True}, "steps True"),
        ({"guidance": -0.1}, "guidance -0.1 is not a number from 0 to 50"),
        ({"guidance": 50.1}, "guidance 50.1"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"guidance": float("inf")}, "guidance inf"),
        ({"guidance": "3"}, "guidance '3'"),
        ({"guidance": True}, "guidance True"),
        ({"seed": -1}, f"seed -1 is not a whole number from 0 to {MAX_SEED}"),
        ({"seed": MAX_SEED + 1}, "seed 18446744073709551616"),
        ({"seed": MAX_SEED, "count": 2}, f"largest seed for this count is {MAX_SEED - 1}"),
        ({"count": 0}, "count 0 is not a whole number from 1 to 64"),
        ({"count": 65}, "count 65"),
        ({"count": None}, "count None"),
        ({"max_sequence_length": 0}, "max_sequence_length 0 is not a whole number from 1 to 1024"),
        ({"max_sequence_length": 1025}, "max_sequence_length 1025"),
    ],
)
def test_a_refusal_names_the_field_and_the_bound(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ImageRequest(**{"prompt": "a red circle", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "stepz": 3}, "Unknown request field stepz; the fields are prompt, "),
        ({"steps": 3}, "no prompt"),
        (["a"], "JSON object"),
    ],
)
def test_json_that_is_no_request_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ImageRequest.from_dict(fields)


def test_the_bounds_themselves_are_accepted() -> None:
    longest = "a" * MAX_PROMPT_CHARACTERS
    edge = ImageRequest(
        prompt=longest, width=2048, height=16, steps=1000, guidance=50, seed=MAX_SEED, count=1
    )
    assert edge.seeds == [MAX_SEED]
    assert ImageRequest(prompt="a", steps=1, guidance=0, seed=0, count=64).seeds == list(range(64))


def test_seeds_follow_each_other_once_one_is_chosen() -> None:
    with pytest.raises(RequestError, match="no seed"):
        _ = ImageRequest(prompt="a").seeds
    seeds = {choose_seed() for _ in range(100)}
    assert len(seeds) > 90
    for seed in seeds:
        ImageRequest(prompt="a", seed=seed, count=64)


SOURCE = "0123456789abcdef" * 4


@given(REQUESTS, st.sampled_from(["cover", "pad", "stretch"]), st.booleans())
def test_an_edit_survives_json(request: ImageRequest, fit: Any, from_source: bool) -> None:
    fields = {**request.to_dict(), "source": SOURCE, "fit": fit}
    if from_source:
        fields |= {"size_from": "source", "width": None, "height": None}
    edit = EditRequest(**fields)
    again = request_of(json.loads(json.dumps(edit.to_dict())))
    assert again == edit and isinstance(again, EditRequest)
    assert type(request_of(request.to_dict())) is ImageRequest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": None}, "source None is not the SHA-256"),
        ({"source": SOURCE[:-1]}, "64 hex digits"),
        ({"source": SOURCE.upper()}, "64 hex digits"),
        ({"fit": "crop"}, "fit 'crop' is not one of cover, pad, stretch"),
        ({"fit": None}, "fit None"),
        ({"size_from": "native"}, "size_from 'native'"),
        ({"size_from": "source", "width": 64}, "leave them out"),
        ({"prompt": ""}, "empty"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_an_edit_that_cannot_be_carried_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        EditRequest(**{"prompt": "make it blue", "source": SOURCE, **fields})


def test_an_edit_without_a_source_is_none() -> None:
    with pytest.raises(RequestError, match="no source"):
        EditRequest.from_dict({"prompt": "make it blue"})


def test_noise_of_a_drawing_is_the_seeds_and_of_an_edit_the_sources_too() -> None:
    drawing = ImageRequest(prompt="a", seed=5, count=3)
    assert drawing.noise_seeds == drawing.seeds == [5, 6, 7]
    edits = [EditRequest(prompt="a", seed=5, count=3, source=source) for source in (SOURCE, "f" * 64)]
    numbers = [seed for edit in edits for seed in edit.noise_seeds]
    assert len({*numbers, 5, 6, 7}) == 9 and all(0 <= number <= MAX_SEED for number in numbers)
    assert edits[0].seeds == [5, 6, 7], "what a person says and reads stays short"
    assert EditRequest(prompt="b", seed=6, source=SOURCE, fit="pad").noise_seeds == [numbers[1]]
    with pytest.raises(RequestError, match="no seed"):
        _ = EditRequest(prompt="a", source=SOURCE).noise_seeds


def test_the_folded_seed_is_a_number_that_stays() -> None:
    """Golden: another fold would draw another picture from every stored request."""
    assert EditRequest(prompt="a", seed=0, source="0" * 64).noise_seeds == [14420747639193080612]
