"""Jobs on the page: for who uses the keyboard, who listens, whose phone sleeps, and whose server was started again."""

from .conftest import RunningServer, wait_until
from .test_browser import Locator, Page, browser, button, expect, fill, opened, page, pictures, pytestmark

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


def test_pictures_stand_in_the_order_in_which_they_were_asked_for(page: Page) -> None:
    """Also on a page that is loaded again, whichever of them the server sends first."""
    held: dict = {}
    ids = []
    for number in range(3):
        fill(page, f"picture {number}", Steps=1)
        with page.expect_response("**/v1/jobs/generations") as answer:
            button(page, "Draw").click()
        ids.append(answer.value.json()["id"])
        expect(pictures(page)).to_have_count(number + 1)
    page.route("**/result", lambda route: held.update({route.request.url.split("/")[-2]: route}))
    page.reload()
    wait_until(lambda: page.wait_for_timeout(50) or len(held) == 3)
    for number, id_ in enumerate(reversed(ids)):
        held[id_].continue_()
        expect(pictures(page)).to_have_count(number + 1)
    for place in range(3):
        expect(pictures(page).nth(place)).to_contain_text(f"picture {2 - place}")


def test_a_page_that_slept_asks_again_before_it_gives_up(opened, served: RunningServer) -> None:
    """A question that was on its way when a phone fell asleep fails when it wakes up, much later."""
    page, held = opened(served), []
    expect(button(page, "Draw")).to_be_enabled()
    page.clock.install()
    page.route("**/v1/jobs/job_*", lambda route: route.continue_() if held else held.append(route))
    fill(page, "a patient star", Steps=1)
    button(page, "Draw").click()
    wait_until(lambda: page.wait_for_timeout(50) or len(held) == 1)
    page.clock.fast_forward("10:00")
    held[0].abort()
    expect(page.get_by_role("status")).to_have_text("The server does not answer; asking again.")
    page.clock.fast_forward(2000)
    expect(pictures(page)).to_contain_text("a patient star")
    expect(page.get_by_role("alert")).to_be_empty()


def test_what_the_server_did_not_answer_about_is_found_by_a_page_that_is_loaded_again(page: Page) -> None:
    page.clock.install()
    page.route("**/result", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    fill(page, "a patient star", Steps=1)
    button(page, "Draw").click()
    status, alert = page.get_by_role("status"), page.get_by_role("alert")
    expect(status).to_have_text("The server does not answer; asking again.")
    page.clock.run_for(70_000)
    expect(alert).to_contain_text("load the page again to ask")
    page.unroute("**/result")
    page.reload()
    expect(pictures(page)).to_contain_text("a patient star")


def test_a_server_that_was_started_again_with_other_keys_is_given_one(page: Page) -> None:
    refusal = {"error": {"message": "Incorrect API key provided.", "param": None, "code": "invalid_api_key"}}
    page.route("**/v1/jobs/generations", lambda route: route.fulfill(status=401, json=refusal))
    fill(page, "a star", Steps=1)
    button(page, "Draw").click()
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    page.unroute("**/v1/jobs/generations")
    key.fill("dave-0123456789abcdef")
    key.press("Enter")
    expect(key).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text("The server knows that API key. Draw again.")
    expect(button(page, "Draw")).to_be_focused()
    page.route("**/v1/jobs/job_*", lambda route: route.fulfill(status=401, json=refusal))
    page.keyboard.press("Enter")
    expect(key).to_be_focused()
    expect(page.get_by_role("alert")).to_be_empty()
    page.unroute("**/v1/jobs/job_*")
    page.reload()
    expect(pictures(page)).to_contain_text("a star")
