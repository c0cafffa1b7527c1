"""Names of files from words of people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky5.cli.targets import slug


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red circle", "a-red-circle"),
        ("A Red  Circle!!", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con.png", "c-con-png"),
        ("красный круг", "красный-круг"),
        ("a_b-c", "a-b-c"),
        ("🟥 !?", "picture"),
        ("x" * 300, "picture"),
        ("word " * 40, "-".join(["word"] * 12)),
    ],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name


@given(st.text(max_size=300))
def test_a_slug_is_a_safe_short_file_name(prompt: str) -> None:
    name = slug(prompt)
    assert 0 < len(name.encode()) <= 180
    assert not set(name) & set('/\\:*?"<>|\0\n .')
    assert not name.startswith("-") and not name.endswith("-")
