"""The words of the embedded model's world: every way in which a caption, or a person, may name one of its things.

Data only: names of `world` on the left, words on the right, the plainest word first. No sentences, no geometry.
"""

Words = tuple[str, ...]

SHAPE_WORDS: dict[str, dict[str, str]] = {
    "circle": {"circle": "circles", "disc": "discs", "disk": "disks", "dot": "dots"},
    "square": {"square": "squares", "box": "boxes"},
    "triangle": {"triangle": "triangles"},
    "half-circle": {
        "half-circle": "half-circles",
        "semicircle": "semicircles",
        "half circle": "half circles",
        "semi-circle": "semi-circles",
        "half-disc": "half-discs",
    },
    "star": {"star": "stars", "five-pointed star": "five-pointed stars"},
    "cross": {"cross": "crosses", "plus sign": "plus signs", "plus": "pluses"},
    "ring": {"ring": "rings", "hoop": "hoops", "donut": "donuts"},
    "line": {"line": "lines", "stroke": "strokes", "bar": "bars", "stripe": "stripes"},
}
"""Singular to plural."""

COLOUR_WORDS: dict[str, Words] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald"),
    "blue": ("blue", "cobalt", "royal blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
    "black": ("black", "jet-black"),
    "white": ("white", "snow-white"),
    "grey": ("grey", "gray"),
    "turquoise": ("turquoise", "teal", "cyan", "aqua"),
}

SIZE_WORDS: dict[str, Words] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}

FILL_WORDS: dict[str, Words] = {
    "solid": ("solid", "filled"),
    "outlined": ("outlined", "hollow", "unfilled", "empty"),
    "striped": ("striped", "stripy", "hatched"),
}

GROUND_WORDS: dict[str, Words] = {
    "white": ("white",),
    "cream": ("cream", "ivory", "cream-coloured"),
    "grey": ("grey", "gray"),
    "black": ("black",),
    "pale blue": ("pale blue", "light blue", "sky blue"),
    "blue": ("blue", "bright blue"),
    "dark blue": ("dark blue", "navy", "navy blue", "midnight blue", "deep blue"),
    "pale green": ("pale green", "light green", "mint", "mint green"),
    "green": ("green", "grass green"),
    "dark green": ("dark green", "deep green", "forest green"),
    "pale yellow": ("pale yellow", "light yellow", "soft yellow"),
    "yellow": ("yellow", "bright yellow"),
    "pink": ("pink", "pale pink", "light pink"),
    "lilac": ("lilac", "lavender", "light purple", "pale purple"),
    "red": ("red", "bright red"),
    "orange": ("orange", "bright orange"),
}

GROUND_NOUNS: Words = ("background", "background", "background", "ground", "canvas", "backdrop")

COUNT_WORDS: dict[int, Words] = {
    1: ("one", "a single", "1"),
    2: ("two", "2", "a pair of", "a couple of"),
    3: ("three", "3", "a trio of", "a group of three"),
    4: ("four", "4", "a group of four"),
    5: ("five", "5", "a group of five"),
}

RELATION_WORDS: dict[str, Words] = {
    "left of": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
}
"""Between two things."""

RELATION_TO_IT: dict[str, Words] = {
    "left of": ("to {its} left", "on {its} left", "to the left of {it}", "left of {it}"),
    "right of": ("to {its} right", "on {its} right", "to the right of {it}", "right of {it}"),
    "above": ("above {it}", "over {it}"),
    "below": ("below {it}", "under {it}", "beneath {it}", "underneath {it}"),
}
"""Towards the thing just named."""

POSITION_WORDS: dict[str, Words] = {
    "left": ("on the left", "at the left", "on the left side", "on the left-hand side", "at the left edge"),
    "right": (
        "on the right",
        "at the right",
        "on the right side",
        "on the right-hand side",
        "at the right edge",
    ),
    "top": ("at the top", "on top", "in the upper part", "at the top centre", "at the top edge"),
    "bottom": ("at the bottom", "in the lower part", "at the bottom centre", "at the bottom edge"),
    "centre": ("in the centre", "in the middle", "in the center", "at the centre", "centred"),
    "top left": (
        "in the top left corner",
        "at the top left",
        "in the upper left",
        "in the upper left corner",
    ),
    "top right": (
        "in the top right corner",
        "at the top right",
        "in the upper right",
        "in the upper right corner",
    ),
    "bottom left": (
        "in the bottom left corner",
        "at the bottom left",
        "in the lower left",
        "in the lower left corner",
    ),
    "bottom right": (
        "in the bottom right corner",
        "at the bottom right",
        "in the lower right",
        "in the lower right corner",
    ),
}

OPENINGS: Words = (
    "a picture of",
    "an abstract painting of",
    "draw",
    "paint",
    "an abstract composition with",
    "a composition of",
    "an image of",
    "a painting with",
    "show me",
    "a geometric composition showing",
    "abstract art with",
    "generate an image of",
    "make a picture with",
    "please draw",
    "I want to see",
    "a minimalist poster with",
    "a flat drawing of",
    "a Kandinsky painting with",
    "a suprematist painting of",
    "abstract:",
    "can you draw",
    "create",
)
"""Before a noun phrase."""

CLOSINGS: Words = (
    "abstract art",
    "in the style of Kandinsky",
    "flat colours",
    "minimalist",
    "abstract painting",
    "geometric shapes",
    "Bauhaus style",
    "simple shapes",
    "crisp edges",
)
"""After a caption, as people add them; they say nothing of the scene."""

VERBS: dict[str, str] = {"is": "are", "sits": "sit", "stands": "stand", "lies": "lie", "appears": "appear"}
"""Singular to plural."""

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
