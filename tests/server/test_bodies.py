"""Bodies that are checked: what is wrong is found without looking at 100,000 things that are wrong."""

import json

import pytest
from pydantic import ValidationError

from kandinsky5.server import bodies, intake
from kandinsky5.server.bodies import EditForm, EditJobBody, GenerationBody, of_form, of_json
from kandinsky5.server.problems import Problem

MANY = 30_000
WIDE = {
    "unknown names": {f"x{number}": 1 for number in range(MANY)},
    "sources": {"images": [{}] * MANY},
    "names in a source": {"images": [{f"x{number}": 1 for number in range(MANY)}]},
    "names in a mask": {"mask": {f"x{number}": 1 for number in range(MANY)}},
    "adapters": {"lora": {f"x{number}": "heavy" for number in range(MANY)}},
    "a prompt that is a list of lists": {"prompt": [[[]] * 100] * 100},
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many things pydantic found wrong with each body."""
    found: list[int] = []
    of_validation = bodies.of_validation

    def count(error: ValidationError) -> Problem:
        found.append(error.error_count())
        return of_validation(error)

    monkeypatch.setattr(bodies, "of_validation", count)
    return found


@pytest.mark.parametrize("what", WIDE)
def test_a_wide_body_is_refused_at_the_first_thing(what: str, counted: list[int]) -> None:
    body = {"prompt": "a", **WIDE[what]}
    with pytest.raises(Problem) as refused:
        of_json(EditJobBody, intake._parsed(json.dumps(body).encode()))
    assert refused.value.status == 400
    assert sum(counted) <= 2


def test_a_form_is_refused_at_the_first_unknown_field(counted: list[int]) -> None:
    with pytest.raises(Problem, match=r"Unknown parameter: 'x0'") as refused:
        of_form(EditForm, {f"x{number}": "1" for number in range(64)})
    assert (refused.value.code, refused.value.param, counted) == ("unknown_parameter", "x0", [])


def test_a_body_of_more_values_than_prompts_have_commas_is_not_even_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = b'{"prompt": "a", ' + b", ".join(b'"%d": 1' % number for number in range(60_000)) + b"}"
    monkeypatch.setattr(intake.json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    for wide in (body, b"[" * 60_000, b'{"a":' * 60_000):
        with pytest.raises(Problem, match="far more values") as refused:
            intake._parsed(wide)
        assert refused.value.code == "invalid_json"


def test_two_of_the_longest_prompts_are_read_whatever_they_hold() -> None:
    body = {"prompt": ",[{" * 6666, "negative_prompt": "," * 20_000, "lora": {"a": 1.0}}
    assert of_json(GenerationBody, intake._parsed(json.dumps(body).encode())).prompt == body["prompt"]


@pytest.mark.parametrize("text", ['{"n": 1, "prompt": "a", "n": 2}', '{"lora": {"n": 1, "n": 1}}'])
def test_a_name_that_is_there_twice_is_refused(text: str) -> None:
    """Of two values one would be ignored; a form is refused likewise."""
    with pytest.raises(Problem, match=r"^'n' is there twice") as refused:
        intake._parsed(text.encode())
    assert (refused.value.status, refused.value.param) == (400, "n")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("size", "1024X1024", "must be WIDTHxHEIGHT, such as 1024x1024, or auto, not '1024X1024'"),
        ("size", "auto\n", "must be WIDTHxHEIGHT"),
        (
            "images",
            [{"image_url": "https://a/b.png"}],
            "must be a data url in base64, such as data:image/png",
        ),
    ],
)
def test_a_text_of_another_form_is_told_what_would_do(field: str, value: object, words: str) -> None:
    source = {"images": [{"image_url": "data:image/png;base64,AAAA"}]}
    with pytest.raises(Problem, match="Invalid value") as refused:
        of_json(EditJobBody, {"prompt": "a", **source, field: value})
    assert words in refused.value.message


@pytest.mark.parametrize("value", [[[[[1] * 60] * 60]], "a" * 10**6, {"a": {"b": {"c": {"d": {}}}}}])
def test_a_value_is_told_by_its_beginning(value: object) -> None:
    with pytest.raises(Problem, match=r"^Invalid value for 'n': .{20,200}$"):
        of_json(GenerationBody, {"prompt": "a", "n": value})


def test_a_deep_value_is_told_too() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Problem, match="Invalid value for 'n'"):
        of_json(GenerationBody, {"prompt": "a", "n": deep})
