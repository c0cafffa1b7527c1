"""Which blocks stay on the device, and what is left of the others' copies behind computing.

Comes in: how many blocks there are and stay, seconds of a block's computing and of its copy. Goes out: a flag for each
block, seconds of a pass. One truth for the plan's time and for what is placed. Refuses to know: bytes, modules.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

PASSES: Final = 3
"""Of which the last is timed: the first finds nothing there, and what one leaves for the next is settled after two."""


@lru_cache(maxsize=256)
def which_stay(blocks: int, resident: int) -> tuple[bool, ...]:
    """For each block whether it stays on the device: as many as are resident, as evenly spread as can be.

    So each copy has about as much computing to hide behind as any other. Where those that are streamed follow each
    other in one run, copies run ahead of it by no more than the slots, wait there, and fall behind in the run. Passes
    follow each other, so the stretch over the end of one is no longer than those inside it.
    """
    return tuple(i * resident % blocks < resident for i in range(blocks))


def pass_seconds(stays: Sequence[bool], *, computing: float, copying: float, slots: int) -> float:
    """Of one pass through all blocks among many, in the order in which a conveyor's events let it go on.

    Blocks are computed one after another, a streamed one when its copy is through; copies are one after another too,
    each into the slot that the streamed block `slots` before it was computed from. The first ones of a pass come while
    the one before it is computed.

    Args:
        stays: for each block whether it is on the device for good; more than `slots` of them are not.
        computing: seconds of a block.
        copying: seconds that a block's weights take to the device.
        slots: how many streamed blocks are there at once.
    """
    computed = copied = begun = 0.0
    free = [0.0] * slots
    turn = 0
    for _ in range(PASSES):
        begun = computed
        for stay in stays:
            if stay:
                computed += computing
                continue
            copied = max(copied, free[turn]) + copying
            computed = free[turn] = max(computed, copied) + computing
            turn = (turn + 1) % slots
    return computed - begun
