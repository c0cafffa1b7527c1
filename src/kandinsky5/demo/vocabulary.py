"""The words of the embedded model's world: every way in which a caption, or a person, may name one of its things.

Data only: names of `world` on the left, words on the right, the plainest word first. No sentences, no geometry.
"""

Words = tuple[str, ...]

SHAPE_WORDS: dict[str, dict[str, str]] = {
    "circle": {
        "circle": "circles",
        "disc": "discs",
        "disk": "disks",
        "dot": "dots",
        "ball": "balls",
        "round shape": "round shapes",
        "circular shape": "circular shapes",
    },
    "square": {
        "square": "squares",
        "box": "boxes",
        "block": "blocks",
        "tile": "tiles",
        "square shape": "square shapes",
    },
    "triangle": {
        "triangle": "triangles",
        "triangular shape": "triangular shapes",
        "three-sided shape": "three-sided shapes",
    },
    "half-circle": {
        "half-circle": "half-circles",
        "semicircle": "semicircles",
        "half circle": "half circles",
        "semi-circle": "semi-circles",
        "half-disc": "half-discs",
        "half disc": "half discs",
        "half-disk": "half-disks",
        "half-moon": "half-moons",
        "half moon": "half moons",
        "semi circle": "semi circles",
    },
    "star": {
        "star": "stars",
        "five-pointed star": "five-pointed stars",
        "star shape": "star shapes",
        "5-pointed star": "5-pointed stars",
        "five-point star": "five-point stars",
    },
    "cross": {
        "cross": "crosses",
        "plus sign": "plus signs",
        "plus": "pluses",
        "plus shape": "plus shapes",
        "plus symbol": "plus symbols",
        "cross shape": "cross shapes",
        "Greek cross": "Greek crosses",
    },
    "ring": {
        "ring": "rings",
        "hoop": "hoops",
        "donut": "donuts",
        "doughnut": "doughnuts",
        "ring shape": "ring shapes",
        "annulus": "annuli",
    },
    "line": {
        "line": "lines",
        "stroke": "strokes",
        "bar": "bars",
        "stripe": "stripes",
        "straight line": "straight lines",
        "rod": "rods",
        "stick": "sticks",
        "line segment": "line segments",
    },
}
"""Singular to plural."""

COLOUR_WORDS: dict[str, Words] = {
    "red": ("red", "crimson", "scarlet", "bright red", "ruby red", "cherry red", "tomato red"),
    "orange": ("orange", "tangerine", "bright orange", "pumpkin orange", "carrot orange"),
    "yellow": ("yellow", "golden", "lemon", "bright yellow", "canary yellow", "lemon yellow", "sunny yellow"),
    "green": ("green", "emerald", "emerald green", "grass green", "leaf green", "kelly green"),
    "blue": ("blue", "cobalt", "royal blue", "cobalt blue", "sapphire", "sapphire blue", "ultramarine"),
    "purple": ("purple", "violet", "royal purple", "grape purple", "deep purple"),
    "pink": ("pink", "rose", "rose pink", "candy pink", "bubblegum pink", "flamingo pink"),
    "brown": ("brown", "chocolate", "chocolate brown", "chestnut", "chestnut brown", "dark brown"),
    "black": ("black", "jet-black", "jet black", "pitch black", "pure black", "coal black", "ink black"),
    "white": ("white", "snow-white", "snow white", "pure white", "bright white", "chalk white"),
    "grey": ("grey", "gray", "steel grey", "stone grey", "ash gray", "neutral gray"),
    "turquoise": ("turquoise", "teal", "cyan", "aqua", "aquamarine", "blue-green"),
}

SIZE_WORDS: dict[str, Words] = {
    "small": ("small", "little", "tiny", "mini", "miniature", "small-sized", "teeny", "smallish", "wee"),
    "medium": (
        "medium",
        "medium-sized",
        "mid-sized",
        "medium-size",
        "mid-size",
        "average-sized",
        "normal-sized",
        "regular-sized",
    ),
    "large": (
        "large",
        "big",
        "huge",
        "giant",
        "enormous",
        "large-sized",
        "very big",
        "massive",
        "great big",
        "oversized",
    ),
}

FILL_WORDS: dict[str, Words] = {
    "solid": ("solid", "filled", "filled-in", "fully filled", "solid-coloured"),
    "outlined": (
        "outlined",
        "hollow",
        "unfilled",
        "empty",
        "outline-only",
        "wireframe",
        "hollowed-out",
    ),
    "striped": ("striped", "stripy", "hatched", "stripey", "banded", "candy-striped"),
}

GROUND_WORDS: dict[str, Words] = {
    "white": ("white", "plain white", "pure white", "clean white"),
    "cream": ("cream", "ivory", "cream-coloured", "cream-colored", "off-white", "creamy", "eggshell"),
    "grey": ("grey", "gray", "plain grey", "plain gray", "neutral grey", "mid-grey"),
    "black": ("black", "plain black", "pitch black", "pure black", "jet black"),
    "pale blue": (
        "pale blue",
        "light blue",
        "sky blue",
        "baby blue",
        "powder blue",
        "pastel blue",
        "soft blue",
    ),
    "blue": ("blue", "bright blue", "vivid blue", "plain blue"),
    "dark blue": (
        "dark blue",
        "navy",
        "navy blue",
        "midnight blue",
        "deep blue",
        "very dark blue",
        "night blue",
        "ink blue",
    ),
    "pale green": (
        "pale green",
        "light green",
        "mint",
        "mint green",
        "pastel green",
        "soft green",
        "pale mint",
    ),
    "green": ("green", "grass green", "vivid green", "plain green"),
    "dark green": (
        "dark green",
        "deep green",
        "forest green",
        "very dark green",
        "bottle green",
        "pine green",
        "hunter green",
    ),
    "pale yellow": (
        "pale yellow",
        "light yellow",
        "soft yellow",
        "pastel yellow",
        "butter yellow",
        "buttery yellow",
    ),
    "yellow": ("yellow", "bright yellow", "vivid yellow", "sunny yellow", "plain yellow"),
    "pink": ("pink", "pale pink", "light pink", "pastel pink", "soft pink", "baby pink"),
    "lilac": (
        "lilac",
        "lavender",
        "light purple",
        "pale purple",
        "pastel purple",
        "soft purple",
        "pale violet",
        "light violet",
    ),
    "red": ("red", "bright red", "vivid red", "plain red"),
    "orange": ("orange", "bright orange", "vivid orange", "plain orange"),
}

GROUND_NOUNS: Words = (
    *("background",) * 9,
    *("ground", "canvas", "backdrop") * 2,
    "page",
    "sheet",
    "surface",
    "field",
    "backing",
)
"""As often as people say each."""

COUNT_WORDS: dict[int, Words] = {
    1: ("one", "a single", "1", "just one", "exactly one", "a lone", "a solitary"),
    2: ("two", "2", "a pair of", "a couple of", "exactly two", "a set of two", "a duo of", "2x"),
    3: ("three", "3", "a trio of", "a group of three", "exactly three", "a set of three", "3x"),
    4: ("four", "4", "a group of four", "exactly four", "a set of four", "a quartet of", "4x"),
    5: ("five", "5", "a group of five", "exactly five", "a set of five", "a quintet of", "5x"),
}
