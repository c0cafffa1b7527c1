"""The words of instructions: where a thing is moved to, and the ways to ask for each edit.

Data only, as `vocabulary`; the plainest first. Knows nothing of scenes, and chooses nothing.
"""

from kandinsky5.demo.vocabulary import Words

TO_POSITION_WORDS: dict[str, Words] = {
    "left": ("to the left", "to the left side", "to the left edge", "over to the left"),
    "right": ("to the right", "to the right side", "to the right edge", "over to the right"),
    "top": ("to the top", "up to the top", "to the upper part", "to the top edge", "to the top centre"),
    "bottom": ("to the bottom", "down to the bottom", "to the lower part", "to the bottom edge"),
    "centre": ("to the centre", "to the middle", "into the centre", "into the middle", "to the center"),
    "top left": (
        "to the top left corner",
        "to the top left",
        "into the upper left corner",
        "to the upper left",
    ),
    "top right": (
        "to the top right corner",
        "to the top right",
        "into the upper right corner",
        "to the upper right",
    ),
    "bottom left": (
        "to the bottom left corner",
        "to the bottom left",
        "into the lower left corner",
        "to the lower left",
    ),
    "bottom right": (
        "to the bottom right corner",
        "to the bottom right",
        "into the lower right corner",
        "to the lower right",
    ),
}
"""Where a thing is moved to."""

EDITS: dict[str, Words] = {
    "recolour": (
        "make {it} {colour}",
        "paint {it} {colour}",
        "colour {it} {colour}",
        "color {it} {colour}",
        "turn {it} {colour}",
        "change {it} to {colour}",
        "change the colour of {it} to {colour}",
        "change the color of {it} to {colour}",
        "recolour {it} in {colour}",
        "{it} should be {colour}",
        "I want {it} to be {colour}",
        "let {it} be {colour}",
        "give {it} the colour {colour}",
        "replace {it} with {the_same}",
    ),
    "reshape": (
        "turn {it} into {what}",
        "change {it} into {what}",
        "change {it} to {what}",
        "make {it} {what}",
        "replace {it} with {what}",
        "transform {it} into {what}",
        "swap {it} for {what}",
        "{it} should be {what}",
        "{it} should become {what}",
        "I want {what} instead of {it}",
        "put {what} in place of {it}",
    ),
    "move to": (
        "move {it} {to}",
        "shift {it} {to}",
        "bring {it} {to}",
        "drag {it} {to}",
        "take {it} {to}",
        "put {it} {place}",
        "place {it} {place}",
        "{it} should be {place}",
        "I want {it} {place}",
    ),
    "move beside": (
        "move {it} {beside}",
        "put {it} {beside}",
        "place {it} {beside}",
        "{it} should be {beside}",
        "move {it} so that {they} {are} {beside}",
        "I want {it} {beside}",
    ),
    "remove": (
        "remove {it}",
        "delete {it}",
        "erase {it}",
        "take {it} away",
        "take away {it}",
        "take out {it}",
        "get rid of {it}",
        "drop {it}",
        "remove {it} from the picture",
        "{it} should go",
        "make {it} disappear",
    ),
    "add": (
        "add {new}",
        "insert {new}",
        "draw {new}",
        "put {new}",
        "place {new}",
        "include {new}",
        "also draw {new}",
        "there should also be {new}",
        "I also want {new}",
    ),
    "ground": (
        "make the {surface} {ground}",
        "change the {surface} to {ground}",
        "turn the {surface} {ground}",
        "paint the {surface} {ground}",
        "set the {surface} to {ground}",
        "the {surface} should be {ground}",
        "use {a_ground} {surface}",
        "put everything on {a_ground} {surface}",
        "give it {a_ground} {surface}",
        "replace the {surface} with {a_ground} one",
        "{ground} {surface}",
    ),
    "outlined": (
        "make {it} {fill}",
        "turn {it} into {an_outline}",
        "leave only the {outline} of {it}",
        "keep only the {outline} of {it}",
        "{it} should be {fill}",
    ),
    "striped": (
        "make {it} {fill}",
        "give {it} stripes",
        "add stripes to {it}",
        "cover {it} with stripes",
        "{it} should be {fill}",
    ),
    "solid": (
        "make {it} {fill}",
        "fill {it}",
        "fill in {it}",
        "fill {it} in",
        "{it} should be {fill}",
    ),
}
"""Ways to ask for an edit, the plainest first; `instructions` says what stands in the gaps."""

EDIT_OPENINGS: Words = ("please", "now", "could you", "can you", "I would like you to", "then", "next,")
"""Before an imperative."""

EDIT_CLOSINGS: Words = (
    "please",
    "keep everything else",
    "leave the rest as it is",
    "keep the rest the same",
    "and leave everything else alone",
)
