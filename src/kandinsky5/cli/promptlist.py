"""The prompts of one command: an argument, the lines of a file, or those of standard input.

In: what was typed. Out: a list of texts, at least one. Refuses to know: what a prompt means, and its limits.
"""

import re
import sys
from pathlib import Path

from kandinsky5.errors import RequestError

STANDARD_INPUT = "-"

_ENDS_OF_LINES = re.compile("\r\n|\n|\r")
"""As files have them; `str.splitlines` would cut at breaks that word processors write inside a paragraph, too."""


def read_prompts(
    prompt: str | None,
    from_file: str | None,
    *,
    wanted: str = "draw",
    example: str = 'generate "a red circle"',
) -> list[str]:
    """One prompt, or one a line from `from_file`; "-" in either place is standard input. Blank lines are skipped.

    `wanted` and `example` are what a person who gave none is told to say.

    Raises RequestError when there is no prompt, more than one source of them, or a file that is not UTF-8 text.
    """
    if prompt is not None and from_file is not None:
        raise RequestError("Prompts come from the argument or from --from-file, not from both.")
    if prompt is None and from_file is None:
        raise RequestError(
            f"Say what to {wanted}: kandinsky5 {example}, --from-file prompts.txt, or - for standard input."
        )
    if prompt is not None and prompt != STANDARD_INPUT:
        return [prompt]
    source = STANDARD_INPUT if from_file is None else from_file
    lines = _ENDS_OF_LINES.split(_text(source))
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RequestError(f"{_called(source)} holds no prompt; write one a line.")
    return prompts


def _text(source: str) -> str:
    if source == STANDARD_INPUT and sys.stdin is None:
        raise RequestError("Standard input is closed; give the prompt as an argument, or with --from-file.")
    try:
        data = sys.stdin.buffer.read() if source == STANDARD_INPUT else Path(source).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError of a closed stream, and of a name with a zero byte
        raise RequestError(
            f"{_called(source)} cannot be read: {getattr(error, 'strerror', error)}."
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{_called(source)} is not UTF-8 text (byte {error.start}).") from error


def _called(source: str) -> str:
    return "Standard input" if source == STANDARD_INPUT else f"Prompt file {source}"
