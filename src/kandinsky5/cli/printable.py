"""Texts that come out of files, for a terminal.

In: any text. Out: one line in which whatever would move the cursor or colour the screen is spelled out. Refuses to
know: where it came from.
"""


def printable(text: object) -> str:
    """The text with characters that are not printed (newlines, escapes) as Python would write them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
