"""In which order rows are learnt: a function of the seed alone, so that a resumed run has no position to remember.

In: the rows, how many go into a forward pass. Out: micro-batch number i, for any i. Rows of a micro-batch have one size
and one task. It refuses to know tensors.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kandinsky5.train.data.encoding import Learnable
from kandinsky5.train.data.sizes import Size

MicroBatch = tuple["Pick", ...]


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A row, and which of its texts."""

    row: int
    text: int


class Order:
    """Micro-batches of a run.

    Every epoch shows each row as often as its share says (a part of a share by chance), in a new order, with a text of
    its own choice. A size's last micro-batch is filled up from its first rows.
    """

    def __init__(self, rows: Sequence[Learnable], micro_batch: int, *, seed: int, editing_share: float):
        self._rows = rows
        self._micro_batch = micro_batch
        self._seed = seed
        self._editing_share = editing_share
        self._starts = [0]
        self._epoch = -1
        self._batches: list[MicroBatch] = []

    def __getitem__(self, index: int) -> MicroBatch:
        """Micro-batch `index`, counted from the start of the run."""
        while index >= self._starts[-1]:
            self._starts.append(self._starts[-1] + len(self._of_epoch(len(self._starts) - 1)))
        epoch = next(e for e in range(len(self._starts) - 2, -1, -1) if self._starts[e] <= index)
        return self._of_epoch(epoch)[index - self._starts[epoch]]

    def _of_epoch(self, epoch: int) -> list[MicroBatch]:
        if epoch != self._epoch:
            rng = random.Random(f"{self._seed}/{epoch}")
            batches = self._mixed(self._in_pools(rng), rng)
            rng.shuffle(batches)
            self._epoch, self._batches = epoch, batches
        return self._batches

    def _in_pools(self, rng: random.Random) -> dict[bool, list[MicroBatch]]:
        """Full micro-batches by whether they are edits."""
        pools: defaultdict[tuple[bool, Size], list[Pick]] = defaultdict(list)
        for number, row in enumerate(self._rows):
            whole, part = divmod(row.share, 1)
            for _ in range(int(whole) + (rng.random() < part)):
                pools[row.source is not None, row.size].append(
                    Pick(row=number, text=rng.randrange(len(row.texts)))
                )
        if not pools:  # all shares are below 1, and chance left every row out
            number = rng.choices(range(len(self._rows)), [row.share for row in self._rows])[0]
            row = self._rows[number]
            pools[row.source is not None, row.size].append(
                Pick(row=number, text=rng.randrange(len(row.texts)))
            )
        batches: defaultdict[bool, list[MicroBatch]] = defaultdict(list)
        for (edits, _), picks in sorted(pools.items()):
            rng.shuffle(picks)
            missing = -len(picks) % self._micro_batch
            filled = picks + list(itertools.islice(itertools.cycle(picks), missing))
            batches[edits] += [
                tuple(filled[i : i + self._micro_batch]) for i in range(0, len(filled), self._micro_batch)
            ]
        return batches

    def _mixed(self, batches: dict[bool, list[MicroBatch]], rng: random.Random) -> list[MicroBatch]:
        """Both tasks in the share asked for, where there are both; the scarcer one is repeated.

        Of the other one an epoch leaves some out: by chance, so that another epoch has them.
        """
        for one in batches.values():
            rng.shuffle(one)
        if len(batches) < 2:
            return [batch for one in batches.values() for batch in one]
        total = sum(len(one) for one in batches.values())
        edits = round(self._editing_share * total)
        counts = {True: edits, False: total - edits}
        return [
            batch
            for task, one in batches.items()
            for batch in itertools.islice(itertools.cycle(one), counts[task])
        ]
