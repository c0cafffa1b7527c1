"""The words for where things stand: to each other, in a row, and on the canvas; and the verbs of standing there.

Data only, as `vocabulary`: the names of `layout` on the left, words on the right, the plainest first. No geometry.
"""

from kandinsky5.demo.vocabulary import Words

_BESIDE: Words = (
    "to the {side} of",
    "{side} of",
    "on the {side} of",
    "on the {side} side of",
    "at the {side} of",
    "to the {side} side of",
    "at the {side} side of",
    "on the {side}-hand side of",
    "to the {side}-hand side of",
    "over to the {side} of",
    "further {side} than",
    "further to the {side} than",
    "more to the {side} than",
    "somewhere to the {side} of",
)
_BESIDE_IT: Words = (
    "to {its} SIDE",
    "on {its} SIDE",
    "to the SIDE of {it}",
    "SIDE of {it}",
    "at {its} SIDE side",
    "on {its} SIDE side",
    "on {its} SIDE-hand side",
    "to {its} SIDE-hand side",
    "on the SIDE of {it}",
    "on the SIDE side of {it}",
    "over to {its} SIDE",
    "further SIDE than {it}",
    "somewhere to {its} SIDE",
)

RELATION_WORDS: dict[str, Words] = {
    "left of": tuple(form.format(side="left") for form in _BESIDE),
    "right of": tuple(form.format(side="right") for form in _BESIDE),
    "above": (
        "above",
        "over",
        "higher than",
        "on top of",
        "higher up than",
        "further up than",
        "up above",
        "somewhere above",
        "in the space above",
    ),
    "below": (
        "below",
        "under",
        "beneath",
        "underneath",
        "lower than",
        "lower down than",
        "further down than",
        "down below",
        "somewhere below",
        "in the space below",
        "in the space under",
    ),
}
"""Between two things."""

RELATION_TO_IT: dict[str, Words] = {
    "left of": tuple(form.replace("SIDE", "left") for form in _BESIDE_IT),
    "right of": tuple(form.replace("SIDE", "right") for form in _BESIDE_IT),
    "above": (
        "above {it}",
        "over {it}",
        "higher than {it}",
        "on top of {it}",
        "higher up than {it}",
        "up above {it}",
        "somewhere above {it}",
        "in the space above {it}",
    ),
    "below": (
        "below {it}",
        "under {it}",
        "beneath {it}",
        "underneath {it}",
        "lower than {it}",
        "lower down than {it}",
        "down below {it}",
        "somewhere below {it}",
        "in the space below {it}",
    ),
}
"""Towards the thing just named."""

ORDER_WORDS: dict[str, Words] = {
    "left of": ("from left to right", "left to right", "arranged from left to right", "going left to right"),
    "right of": ("from right to left", "right to left", "arranged from right to left", "going right to left"),
    "above": (
        "from top to bottom",
        "top to bottom",
        "arranged from top to bottom",
        "going from top to bottom",
    ),
    "below": (
        "from bottom to top",
        "bottom to top",
        "arranged from bottom to top",
        "going from bottom to top",
    ),
}
"""Of things named in turn: each stands like this to the next."""

SIDE_WORDS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("upper", "lower"),
    "below": ("lower", "upper"),
}
"""Of two things: which of them is the first, and which the second."""

_ALONG: Words = (
    "on the {side}",
    "at the {side}",
    "on the {side} side",
    "on the {side}-hand side",
    "at the {side} edge",
    "at the {side} side",
    "near the {side} edge",
    "towards the {side}",
    "in the {side} part",
    "in the {side} third",
    "on the far {side}",
    "at the {side} border",
)
_CORNER: Words = (
    "in the {end} {side} corner",
    "at the {end} {side}",
    "in the {high} {side}",
    "in the {high} {side} corner",
    "in the {end}-{side} corner",
    "in the {end} {side}",
    "at the {high} {side}",
    "at {end} {side}",
    "near the {end} {side} corner",
    "in the {side} {high} corner",
    "in the {end} {side}-hand corner",
    "towards the {high} {side}",
    "in the corner at the {end} {side}",
)

POSITION_WORDS: dict[str, Words] = {
    **{side: tuple(form.format(side=side) for form in _ALONG) for side in ("left", "right")},
    "top": (
        "at the top",
        "on top",
        "in the upper part",
        "at the top centre",
        "at the top edge",
        "near the top",
        "near the top edge",
        "in the top part",
        "at the top middle",
        "in the upper middle",
        "at the very top",
        "high up",
        "towards the top",
    ),
    "bottom": (
        "at the bottom",
        "in the lower part",
        "at the bottom centre",
        "at the bottom edge",
        "near the bottom",
        "near the bottom edge",
        "in the bottom part",
        "at the bottom middle",
        "in the lower middle",
        "at the very bottom",
        "low down",
        "towards the bottom",
    ),
    "centre": (
        "in the centre",
        "in the middle",
        "in the center",
        "at the centre",
        "centred",
        "centered",
        "at the center",
        "in the central part",
        "in the middle of the picture",
        "in the centre of the image",
        "near the centre",
        "around the middle",
    ),
    **{
        f"{end} {side}": tuple(form.format(end=end, high=high, side=side) for form in _CORNER)
        for end, high in (("top", "upper"), ("bottom", "lower"))
        for side in ("left", "right")
    },
}

VERBS: dict[str, str] = {
    "is": "are",
    "sits": "sit",
    "stands": "stand",
    "lies": "lie",
    "appears": "appear",
    "floats": "float",
    "hovers": "hover",
    "rests": "rest",
    "goes": "go",
    "is placed": "are placed",
    "is located": "are located",
    "is positioned": "are positioned",
    "is situated": "are situated",
    "is drawn": "are drawn",
    "is painted": "are painted",
    "is found": "are found",
    "is shown": "are shown",
    "is set": "are set",
    "can be seen": "can be seen",
    "should be": "should be",
    "must be": "must be",
    "has to be": "have to be",
    "needs to be": "need to be",
}
"""Singular to plural; each may stand before any relation."""
