"""Jobs on the page, for who uses the keyboard and who listens: the focus stays, and nothing is said twice."""

from .conftest import wait_until
from .test_browser import Locator, Page, browser, button, expect, fill, opened, page, pytestmark

__all__ = ["browser", "opened", "page", "pytestmark"]

SAID = """() => {
  const status = document.querySelector("[role=status]");
  window.said = [];
  new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
}"""


def draw_slowly(page: Page, prompt: str) -> None:
    """Ask for what takes long, by the keyboard; a second such request waits for the first."""
    page.get_by_label("Size").select_option("other")
    fill(page, prompt, Steps=200, Pictures=6, Width=512, Height=512)
    button(page, "Draw").press("Enter")


def cancels(page: Page, *prompts: str) -> list[Locator]:
    return [button(page, f"Cancel: {prompt}") for prompt in prompts]


def test_who_uses_the_keyboard_keeps_their_place(page: Page) -> None:
    """On the button while a request is sent; at the next job, or the prompt, when a job has gone."""
    draw, sent = button(page, "Draw"), []
    page.route("**/v1/jobs/generations", lambda route: sent.append(route))
    draw_slowly(page, "first")
    draw.press("Enter")
    wait_until(lambda: page.wait_for_timeout(50) or sent)
    expect(draw).to_be_focused()
    expect(draw).to_have_attribute("aria-disabled", "true")
    sent[0].continue_()
    page.unroute("**/v1/jobs/generations")
    first, second = cancels(page, "first", "second")
    expect(first).to_be_visible()
    expect(draw).to_be_focused()
    assert len(sent) == 1, "the second press came while the first was at work"
    draw_slowly(page, "second")
    expect(second).to_be_visible()
    first.press("Enter")
    expect(first).to_have_count(0)
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    expect(second).to_have_count(0)
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_be_focused()


def test_each_job_is_told_when_it_changes_and_not_at_every_poll(page: Page) -> None:
    page.evaluate(SAID)
    running = page.get_by_role("region", name="In progress")
    draw_slowly(page, "first")
    expect(running).to_contain_text("Step")
    page.evaluate("said.length = 0")
    draw_slowly(page, "second")
    expect(running).to_contain_text("Waiting, next")
    page.wait_for_timeout(2500)  # several polls of each
    said = page.evaluate("said")
    assert said.count("Waiting, next") == 1 and len(said) == len(set(said)), said
    for cancel in cancels(page, "first", "second"):
        cancel.click()
        expect(cancel).to_have_count(0)
