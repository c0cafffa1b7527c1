"""The web page in headless Chromium: as a person uses it, with a mouse, a finger or only a keyboard.

Everything is found by its role and its name, as a screen reader finds it. After each test the page must have asked
nobody but its server, and its policy must not have been broken.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky5.provenance import Provenance, stored_json

from .conftest import LORA, RunningServer, start, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra browser)")
expect, Page, Locator = playwright.expect, playwright.Page, playwright.Locator

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("KANDINSKY5_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"
)

PATIENCE = 30_000
"""Milliseconds; a shared machine is slow at times."""

expect.set_options(timeout=PATIENCE)

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SMALLEST_TARGET = 44
"""CSS pixels of what a finger must hit."""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Iterator:
    """Opens a page of a server; looks at what it did when the test is over."""
    wrong: list[str] = []
    contexts = []

    def open_page(server: RunningServer, **device) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | device))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        ours = (server.address, f"blob:{server.address}")
        page.on("request", lambda asked: None if asked.url.startswith(ours) else wrong.append(asked.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
        page.goto(server.address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(opened, served: RunningServer) -> Page:
    """The page of the editing model, ready to draw."""
    page = opened(served)
    expect(button(page, "Draw")).to_be_enabled()
    return page


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def fill(page: Page, prompt: str, **fields: object) -> None:
    """The prompt, and number fields by their labels."""
    words = page.get_by_role("textbox", name="Instruction").or_(
        page.get_by_role("textbox", name="Prompt", exact=True)
    )
    words.fill(prompt)
    for name, value in fields.items():
        page.get_by_role("spinbutton", name=name, exact=True).fill(str(value))


def pictures(page: Page) -> Locator:
    return page.get_by_role("region", name="Pictures").get_by_role("figure")


def downloaded(page: Page, place: int = 0) -> Image.Image:
    """The file behind a picture's link."""
    with page.expect_download() as download:
        pictures(page).nth(place).get_by_role("link", name="Download").click()
    return Image.open(download.value.path())


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_pictures_are_drawn_and_drawn_again_with_their_parameters(page: Page) -> None:
    fill(page, "a red circle", Pictures=2, Seed=7, Steps=4, Guidance=2.5)
    page.get_by_role("textbox", name="Negative prompt").fill("grey")
    button(page, "Draw").click()
    expect(page.get_by_role("status")).to_have_text("Done: 2 pictures.")
    expect(pictures(page)).to_have_count(2)
    second = downloaded(page, 1)
    told = Provenance.from_json(stored_json(second) or "").request
    assert (told.prompt, told.negative_prompt, told.seed, told.steps, told.guidance, told.width) == (
        *("a red circle", "grey", 8),
        *(4, 2.5, 128),
    )
    for part in ("a red circle", "128 × 128", "2.5", "grey"):
        expect(pictures(page).nth(1)).to_contain_text(part)

    fill(page, "something else", Pictures=3, Seed=1, Steps=1)
    pictures(page).nth(1).get_by_role("button", name="Use these again").click()
    for name, value in {"Seed": "8", "Steps": "4", "Guidance": "2.5", "Pictures": "1"}.items():
        expect(page.get_by_role("spinbutton", name=name)).to_have_value(value)
    button(page, "Draw").click()
    expect(pictures(page)).to_have_count(3)
    assert np.abs(pixels(downloaded(page)) - pixels(second)).max() <= 1


def test_adapters_are_worn_at_their_weights_and_again(page: Page, png: Path) -> None:
    """Drawing sends JSON and editing a form; both carry them, and a picture brings them back."""
    weight = page.get_by_role("spinbutton", name=LORA)
    for number, value in enumerate(("0.5", "-1"), start=1):
        fill(page, "a ring", Seed=3, Steps=2)
        weight.fill(value)
        button(page, "Edit" if number == 2 else "Draw").click()
        expect(pictures(page)).to_have_count(number)
        expect(pictures(page).first).to_contain_text(f"{LORA} × {value}")
        told = Provenance.from_json(stored_json(downloaded(page)) or "").request
        assert told.lora == ((LORA, float(value)),)
        if number == 1:
            page.get_by_label("Choose a picture").set_input_files(png)
    weight.fill("")
    pictures(page).first.get_by_role("button", name="Use these again").click()
    expect(weight).to_have_value("-1")


def test_progress_is_seen_and_a_picture_that_is_on_its_way_is_cancelled(
    page: Page, served: RunningServer
) -> None:
    before = served.metric("cancelled_requests_total")
    page.get_by_label("Size").select_option("other")
    fill(page, "a slow square", Steps=200, Width=512, Height=512)
    button(page, "Draw").click()
    running = page.get_by_role("region", name="In progress")
    progress = running.get_by_role("progressbar", name="Progress of: a slow square")
    seen = [0.0]
    for _ in range(3):
        page.wait_for_function("last => document.querySelector('progress')?.value > last", arg=seen[-1])
        seen.append(progress.evaluate("bar => bar.value"))
    assert 0 < seen[1] < seen[2] < seen[3] < 1
    preview = running.get_by_role("img", name="Preview of: a slow square")
    expect(preview).to_be_visible()
    assert preview.evaluate("image => image.naturalWidth") == 512
    running.get_by_role("button", name="Cancel: a slow square").click()
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(running.get_by_role("progressbar")).to_have_count(0)
    expect(pictures(page)).to_have_count(0)
    wait_until(lambda: served.metric("drawing_requests") == 0, 5)
    assert served.metric("cancelled_requests_total") == before + 1


def test_an_edit_keeps_what_is_not_painted_and_is_compared_with_its_source(page: Page, png: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(png)
    mask = page.get_by_label("Mask: paint where the picture may change")
    expect(mask).to_be_visible()
    box = mask.bounding_box()
    page.get_by_role("slider", name="Brush").fill("50")
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"], steps=4)
    page.mouse.up()
    fill(page, "make it blue", Seed=5)
    button(page, "Edit").click()
    expect(pictures(page)).to_have_count(1)
    source, edited = pixels(Image.open(png)), pixels(downloaded(page))
    assert np.array_equal(edited[:, 64:], source[:, 64:]), "the brush reaches to 45 % of the width"
    assert np.abs(edited[:, 8:44] - source[:, 8:44]).mean() > 8

    slider = pictures(page).get_by_role("slider", name="Before and after")
    before = pictures(page).get_by_role("img", name="Before", exact=True)
    slider.fill("25")
    assert before.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 75% 0px 0px)"

    button(page, "Remove picture").click()
    pictures(page).get_by_role("button", name="Use these again").click()
    expect(button(page, "Edit")).to_be_enabled()
    button(page, "Edit").click()
    expect(pictures(page)).to_have_count(2)
    assert np.abs(pixels(downloaded(page)) - edited).max() <= 1, "the same source, mask and seed"

    pictures(page).first.get_by_role("button", name="Edit this").click()
    expect(page.get_by_role("img", name="The picture to edit")).to_be_visible()
    expect(page.get_by_role("textbox", name="Instruction")).to_be_focused()


def test_on_a_phone_everything_fits_and_a_finger_paints(opened, served: RunningServer, png: Path) -> None:
    page = opened(served, **PHONE)
    expect(button(page, "Draw")).to_be_enabled()
    page.get_by_label("Choose a picture").set_input_files(png)
    mask = page.get_by_label("Mask: paint")
    mask.tap()
    painted = (
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)"
    )
    assert mask.evaluate(painted)
    fill(page, "make it blue " * 40)
    button(page, "Edit").tap()
    expect(pictures(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    targets = "button:visible, main a, select, label.check, input:not([type=range], [type=checkbox])"
    for target in page.locator(targets).all():
        shape = target.bounding_box()
        if shape is not None:
            assert shape["height"] >= SMALLEST_TARGET, target.evaluate("it => it.outerHTML")
            assert shape["x"] >= 0 and shape["x"] + shape["width"] <= 390


def test_a_keyboard_is_enough(page: Page, png: Path) -> None:
    """From the top of the page to an edited picture and its slider, by Tab and the keys that each field has."""

    def tab_to(wanted: Locator) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", page.evaluate("document.activeElement.outerHTML")
            if wanted.evaluate("it => it === document.activeElement"):
                return
        raise AssertionError(f"Tab never comes to {wanted}")

    page.get_by_label("Choose a picture").set_input_files(png)  # the system's own dialogue is not the page's
    mask = page.get_by_label("Mask: paint")
    tab_to(mask)
    for key in ("+", "+", "Space", "Shift+ArrowLeft", "Shift+ArrowUp"):
        page.keyboard.press(key)
    assert mask.evaluate(
        "canvas => canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[3] === 255"
    )
    tab_to(page.get_by_role("textbox", name="Instruction"))
    page.keyboard.type("make it blue")
    page.keyboard.press("Control+Enter")
    expect(pictures(page)).to_have_count(1)
    slider = pictures(page).get_by_role("slider", name="Before and after")
    tab_to(slider)
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_value("51")
    tab_to(pictures(page).get_by_role("button", name="Use these again"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Instruction")).to_be_focused()
    assert page.get_by_role("spinbutton", name="Seed").input_value() != ""


def test_fields_end_where_the_server_does_and_its_refusals_are_told_at_the_field(page: Page) -> None:
    steps = page.get_by_role("spinbutton", name="Steps")
    assert steps.get_attribute("max") == "200"
    fill(page, "a circle", Steps=201)
    button(page, "Draw").click()
    assert not steps.evaluate("field => field.validity.valid")
    fill(page, "   ", Steps=2)  # passes the form; only the server knows better
    button(page, "Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("prompt is empty")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    expect(prompt).to_have_attribute("aria-invalid", "true")
    expect(prompt).to_be_focused()
    fill(page, "a circle")
    button(page, "Draw").click()
    expect(pictures(page)).to_have_count(1)
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_page_that_is_loaded_again_finds_its_pictures(page: Page) -> None:
    fill(page, "a patient star", Steps=150)
    button(page, "Draw").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.reload()
    expect(pictures(page)).to_have_count(1)
    expect(pictures(page)).to_contain_text("a patient star")


def test_editing_is_offered_where_the_model_edits(opened, embedded: RunningServer) -> None:
    (model,) = embedded.openai.models.list().data
    page = opened(embedded)
    expect(button(page, "Draw")).to_be_enabled()
    assert not page.get_by_label("Let the model write the prompt out").is_visible()
    assert not page.get_by_text("Weights of adapters").is_visible()
    edits = "editing" in model.model_dump()["defaults"]["tasks"]
    assert page.get_by_label("Choose a picture").is_visible() == edits


def test_a_key_is_asked_for_where_the_server_wants_one(opened, saved_editing_folder: str) -> None:
    key = "carol-0123456789abcdef"
    server = start("--model", saved_editing_folder, KANDINSKY5_API_KEYS=key)
    try:
        page = opened(server)
        field, status = page.get_by_label("API key"), page.get_by_role("status")
        expect(field).to_be_focused()
        field.fill("not-the-key-at-all")
        button(page, "Use this key").click()
        expect(status).to_have_text("The server does not know that API key.")
        field.fill(f"{key}–")  # with a dash that no header can carry
        button(page, "Use this key").click()
        expect(status).to_have_text("The server does not know that API key.")
        page.reload()
        expect(field).to_be_focused()
        field.fill(key)
        field.press("Enter")
        expect(field).to_be_hidden()
        expect(status).to_have_text(re.compile("The model is being loaded|Ready"))
    finally:
        server.process.kill()
        server.process.wait()
