"""OpenAI's words into ours, without a server: bounds of what a body leaves open."""

from dataclasses import replace

import pytest
from PIL import Image

from kandinsky5.pictures import content_hash
from kandinsky5.server.bodies import EditJobForm, GenerationJobBody
from kandinsky5.server.problems import Problem
from kandinsky5.server.settings import Settings
from kandinsky5.server.translation import request_of
from kandinsky5.server.uploads import Upload

from .scripted import CARD

SETTINGS = Settings(model="tiny", max_pixels=100 * 100)


def test_a_prompt_that_a_jpeg_cannot_hold_is_refused_in_words_of_the_api() -> None:
    body = GenerationJobBody(prompt="\N{GRINNING FACE}" * 10_000, output_format="jpeg")
    with pytest.raises(Problem, match="png and webp hold it") as refused:
        request_of(body, SETTINGS, CARD)
    assert refused.value.param == "prompt" and "--" not in refused.value.message


@pytest.mark.parametrize(
    ("shape", "refused"), [((200, 50), None), ((50, 200), "64x160"), ((50, 50), "128x128")]
)
def test_an_edit_is_held_to_the_size_that_it_will_have(shape: tuple[int, int], refused: str | None) -> None:
    """Of the model's sizes the nearest to the source, which may be larger or smaller than the model's own."""
    card = replace(CARD, size=(128, 128), sizes=((128, 128), (160, 32), (64, 160)))
    picture = Image.new("RGB", shape)
    upload = Upload(picture=picture, source=content_hash(picture), mask=None)
    body = EditJobForm(prompt="a")
    if refused is None:
        assert request_of(body, SETTINGS, card, upload).width is None
    else:
        with pytest.raises(Problem, match=f"{refused} is more than the 10000 pixels"):
            request_of(body, SETTINGS, card, upload)
