"""How the withheld compositions and edits were drawn: `python -m kandinsky5.demo.withheld_drawing FOLDER`.

Comes in: nothing but fixed seeds. Goes out: scenes and captions, edits and instructions, and on request two files as
those beside this one. Those were drawn with the grammar of 22 November 2026; drawn anew they are other questions of the
same kinds. Knows nothing of how they are asked.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from kandinsky5.demo.captions import Caption, describe
from kandinsky5.demo.edits import KINDS, Edit, draw_edit
from kandinsky5.demo.instructions import instruct
from kandinsky5.demo.stored_questions import Stored, store_claims, store_edit, store_scene
from kandinsky5.demo.withheld import COMPOSED, COMPOSITIONS, EDITED, EDITS
from kandinsky5.demo.world import WITHHELD_SIDES, Scene, draw_scene

_PARTS = ("pairs", "relations", "pairs", "relations", "counts")
"""What of a composition is withheld, in turn."""


def main(arguments: list[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky5.demo.withheld_drawing", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    composed = (
        {"part": part, "text": caption.text, "scene": store_scene(scene), **store_claims(caption.claims)}
        for part, scene, caption in itertools.islice(drawn_compositions(), COMPOSITIONS)
    )
    edited = ({"text": text, **store_edit(edit)} for text, edit in itertools.islice(drawn_edits(), EDITS))
    for name, questions in ((COMPOSED, composed), (EDITED, edited)):
        _write(folder / name, questions)


def drawn_compositions() -> Iterator[tuple[str, Scene, Caption]]:
    """Without end: the part of the set, as `withheld.compositions` has them, the scene, its caption."""
    rng = random.Random("withheld compositions")
    counts = itertools.cycle((1, 2, 3, 4, 5))
    for part in itertools.cycle(_PARTS):
        if part == "relations":
            yield part, *_withheld_relation(rng)
            continue
        scene = _one_group(rng, next(counts)) if part == "counts" else draw_scene(rng, split="withheld")
        yield part, scene, describe(scene, rng)


def drawn_edits() -> Iterator[tuple[str, Edit]]:
    """Without end: the instruction and the edit, the kinds in turn."""
    rng = random.Random("withheld edits")
    for kind in itertools.cycle(KINDS):
        edit = draw_edit(rng, split="withheld", kind=kind)
        yield instruct(edit, rng), edit


def _withheld_relation(rng: random.Random) -> tuple[Scene, Caption]:
    """A scene with a withheld relation, and a caption that says it."""
    while True:
        scene = draw_scene(rng, split="related")
        shapes = [things[0].shape for things in scene.groups()]
        for _ in range(8):
            caption = describe(scene, rng)
            if any((shapes[a], name, shapes[b]) in WITHHELD_SIDES for a, name, b in caption.claims.relations):
                return scene, caption


def _one_group(rng: random.Random, count: int) -> Scene:
    """A scene of one group of a withheld pair, taken out of a larger one."""
    while True:
        scene = draw_scene(rng, split="withheld")
        for things in scene.groups():
            if len(things) == count:
                return Scene(things=things, ground=scene.ground)


def _write(path: Path, questions: Iterable[Stored]) -> None:
    lines = (json.dumps(question, separators=(",", ":"), ensure_ascii=False) for question in questions)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
