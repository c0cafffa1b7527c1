"""Pictures that are given to the page to be edited: what is taken, what is sent, and what is said of the rest."""

from io import BytesIO

from PIL import Image

from .test_browser import Page, browser, button, expect, fill, opened, page, pictures, pytestmark

__all__ = ["browser", "opened", "page", "pytestmark"]

DROP = """([name, type, bytes]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


CORNER = """image => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.drawImage(image, 0, 0);
  return [...pen.getImageData(0, 0, 1, 1).data];
}"""


def test_what_is_dropped_is_taken_or_said_to_be_no_picture(page: Page) -> None:
    """A photograph whose type the system does not know, a document; then one whose transparency is white."""
    alert = page.get_by_role("alert")
    for name, kind in (("a.heic", ""), ("a.pdf", "application/pdf")):
        page.evaluate(DROP, [name, kind, [0, 1, 2]])
        expect(alert).to_have_text("This browser cannot read that file as a picture.")
        fill(page, "a circle", Steps=1)
    clear = BytesIO()
    Image.new("RGBA", (128, 128), (0, 0, 0, 0)).save(clear, "GIF")
    page.evaluate(DROP, ["a.gif", "image/gif", list(clear.getvalue())])
    expect(page.get_by_role("status")).to_have_text("The picture is ready, converted for the server.")
    expect(alert).to_be_empty()
    assert page.get_by_alt_text("The picture to edit").evaluate(CORNER) == [255, 255, 255, 255]


def test_a_picture_that_cannot_be_edited_is_said(page: Page) -> None:
    def narrow(route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["data"][0]["limits"]["max_body_bytes"] = 1000
        route.fulfill(response=answer, json=body)

    page.route("**/v1/models", narrow)
    page.reload()
    expect(button(page, "Draw")).to_be_enabled()
    fill(page, "a circle", Steps=1)
    button(page, "Draw").click()
    pictures(page).get_by_role("button", name="Edit this").click()
    expect(page.get_by_role("alert")).to_have_text("The picture is larger than the server reads.")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a circle")
