"""The screenshots of docs/serving.md: what a browser shows of a running server.

    python docs/images/page_screenshots.py http://127.0.0.1:8000 draw page.png
    python docs/images/page_screenshots.py http://127.0.0.1:8001 edit page-phone.png --source picture.png

Needs the extra `browser` and a Chromium; the pictures are reduced to 256 colours.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PROMPTS = (
    "a red circle and a blue square on a yellow ground",
    "green stars on a grey ground",
    "a black ring on a white ground",
)


def draw(page: Page) -> None:
    """Two pictures in the gallery, a third on its way."""
    for place, prompt in enumerate(PROMPTS):
        page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
        page.get_by_role("spinbutton", name="Seed").fill(str(7 + place))
        page.get_by_role("button", name="Draw").click()
        if prompt != PROMPTS[-1]:
            page.get_by_role("figure").nth(place).wait_for()
    page.wait_for_function("() => document.querySelector('progress')?.value > 0.6")


def edit(page: Page, source: Path) -> None:
    """A mask over a source, painted with the keyboard."""
    page.get_by_label("Choose a picture").set_input_files(source)
    mask = page.get_by_label("Mask: paint")
    mask.focus()
    for key in (*"+++++++++", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight"):
        mask.press(key)
    page.get_by_role("textbox", name="Instruction").fill("make the circle green")
    mask.focus()


def main() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("address")
    arguments.add_argument("what", choices=["draw", "edit"])
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--source", type=Path)
    asked = arguments.parse_args()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
        page = browser.new_page(
            **(phone if asked.what == "edit" else {"viewport": {"width": 1180, "height": 760}})
        )
        page.set_default_timeout(300_000)
        page.goto(asked.address)
        page.locator("#draw:enabled").wait_for()
        edit(page, asked.source) if asked.what == "edit" else draw(page)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=asked.output)
        browser.close()
    Image.open(asked.output).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        asked.output, optimize=True
    )


if __name__ == "__main__":
    main()
