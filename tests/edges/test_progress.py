"""The bar stays out of the way of what is printed."""

import io

import pytest
from rich.console import Console

from kandinsky5.cli.progress import drawing, waiting

ERASE_LINE = "\x1b[2K"


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_bar_counts_over_all_prompts(terminal: Console) -> None:
    with drawing(terminal, steps=6, prompts=2, shown=True) as bar:
        for number, prompt in enumerate(("a star", "a [red] ring"), start=1):
            bar.start(number, prompt)
            for step in (1, 2, 3):
                bar.on_step(step, 3)
        with bar.aside():
            pass
    text = text_of(terminal)
    assert "2/2 a [red] ring" in text and "6/6 steps" in text and "left" in text


def test_a_line_is_printed_where_the_bar_was(terminal: Console) -> None:
    with drawing(terminal, steps=2, prompts=1, shown=True) as bar:
        bar.start(1, "a star")
        bar.on_step(1, 2)
        with bar.aside():
            before = text_of(terminal)
            terminal.file.write("star.png\n")
        after = text_of(terminal).removeprefix(before + "star.png\n")
    assert before.endswith(ERASE_LINE)
    assert "1/2 steps" in after
    assert text_of(terminal).endswith(ERASE_LINE)


def test_nothing_is_shown_where_nobody_watches() -> None:
    pipe = Console(file=io.StringIO(), force_terminal=False)
    quiet = Console(file=io.StringIO(), force_terminal=True)
    for console, shown in ((pipe, True), (quiet, False)):
        with waiting(console, "Loading", shown=shown):
            pass
        with drawing(console, steps=1, prompts=1, shown=shown) as bar, bar.aside():
            bar.start(1, "a star")
        assert text_of(console) == ""


def test_waiting_names_what_for(terminal: Console) -> None:
    with waiting(terminal, "Loading embedded", shown=True):
        pass
    assert "Loading embedded" in text_of(terminal)
    assert text_of(terminal).endswith(ERASE_LINE)
