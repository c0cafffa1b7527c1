"""What stands around the body of a caption: its ground, an opening, a closing or a frame, capitals and a full stop.

Comes in: a body, the name of the ground, and a random generator for the choice of words. Goes out: the whole text.
`openings` holds what says nothing of the scene. Knows nothing of what the body says, of geometry or of pixels.
"""

from kandinsky5.demo import openings
from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.phrasing import Body, Chooser, either, is_wide, mostly_first, one_of, with_article

CAPITALS = 0.1
"""The share of captions in wide words that are in capitals ..."""
TITLES = 0.06
"""... and of those In Title Case."""

_FRAMED = 0.25
"""The share of captions in wide words that may get a frame rather than an opening."""

_USUAL_OPENINGS = openings.OPENINGS[:22]
_USUAL_NOUNS = words.GROUND_NOUNS[:13]
_QUESTIONS = tuple(openings.QUESTIONS)

_GROUND_FIRST = ("on {a}, {text}", "on {a}, {text}", "against {a}, {text}", "on {colour}: {text}")
_MORE_FIRST = ("in front of {a}, {text}", "on {a}: {text}", "{surface} - {text}", "take {a}; {text}")
_GROUND_AROUND = ("{a} with {text}", "{surface}: {text}", "{a} showing {text}", "{surface} with {text}")
_GROUND_LAST = (
    "{text} on {a}",
    "{text} on {a}",
    "{text} on {a}",
    "{text} on {colour}",
    "{text} against {a}",
    "{text}, on {a}",
    "{text}, {surface}",
    "{text}. The background is {colour}",
    "{text}; {a}",
    "{text}, all on {a}",
)
_MORE_LAST = (
    "{text}, with {a}",
    "{text} ({surface})",
    "{text} - {surface}",
    "{text}. {surface}",
    "{text}; background: {colour}",
    "{text}, background {colour}",
    "{text}. The background should be {colour}",
    "{text}, and the background is {colour}",
    "{text}. Use {a}",
    "{text}, set against {a}",
    "{text} in front of {a}",
    "{text}. Everything is on {a}",
    "{text}. {colour} background, please",
)


def finished(body: Body, ground: str | None, rng: Chooser, *, terse: bool) -> str:
    """Add the ground if there is one to name, perhaps what says nothing, and settle case and end mark."""
    text = body.text
    in_front = ground is not None and rng.random() < 0.25
    framed = is_wide(rng) and not in_front and not terse and rng.random() < _FRAMED
    chance = 0.12 if terse else 0.08 if in_front else 0.42
    opening = ""
    if body.phrase and not framed and rng.random() < chance:
        there = f"there {'are' if body.several else 'is'}"
        opening = there if rng.random() < 0.25 else either(rng, _USUAL_OPENINGS, openings.OPENINGS)
        text = f"{opening} {text}"
    if ground is not None:
        around = body.phrase and not opening
        text = _grounded(text, ground, rng, in_front=in_front, around=around, terse=terse)
    if framed:
        text = _framed(text, rng, body)
    elif rng.random() < 0.09:
        text += either(rng, (", ",), (", ", " - ", ". ")) + either(
            rng, openings.CLOSINGS[:9], openings.CLOSINGS
        )
    text = _cased(text, rng)
    if text[-1] in '?"':
        return text
    if opening in _QUESTIONS and ". " not in text and rng.random() < 0.6:
        return text + "?"
    return (
        text + mostly_first(rng, (".", "!"), 0.9) if rng.random() < (0.75 if ". " in text else 0.35) else text
    )


def _grounded(text: str, ground: str, rng: Chooser, *, in_front: bool, around: bool, terse: bool) -> str:
    """The text with its ground before, around or after it."""
    colour = mostly_first(rng, words.GROUND_WORDS[ground], 0.65)
    surface = f"{colour} {either(rng, _USUAL_NOUNS, words.GROUND_NOUNS)}"
    if terse and rng.random() < 0.8:
        return f"{surface}, {text}" if in_front else f"{text}, {surface}"
    first = _GROUND_FIRST + _GROUND_AROUND if around else _GROUND_FIRST
    if is_wide(rng) and rng.random() < 0.4:
        form = one_of(rng, _MORE_FIRST if in_front else _MORE_LAST)
    else:
        form = one_of(rng, first if in_front else _GROUND_LAST)
    return form.format(text=text, a=with_article(surface), colour=colour, surface=surface)


def _framed(text: str, rng: Chooser, body: Body) -> str:
    """The text in a frame that it fits: clauses, noun phrases, and those of several sentences have their own."""
    if rng.random() < 0.35:
        frames = openings.FRAMES
    elif body.clause:
        frames = openings.CLAUSE_FRAMES
    elif body.phrase and ". " not in text and ";" not in text:
        frames = openings.PHRASE_FRAMES
    else:
        frames = openings.FRAMES
    return one_of(rng, frames).format(text=text)


def _cased(text: str, rng: Chooser) -> str:
    if is_wide(rng):
        draw = rng.random()
        if draw < CAPITALS:
            return text.upper()
        if draw < CAPITALS + TITLES:
            return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    draw = rng.random()
    if draw < 0.5:
        return ". ".join(part[0].upper() + part[1:] for part in text.split(". "))
    return text.lower() if draw < 0.9 else text
