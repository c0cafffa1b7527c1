"""Several processes, one a GPU, that hold the same masters and learn from different rows.

Comes in: what `torchrun` puts into the environment. Goes out: sums of gradients, and decisions that all of them take at
the same step. One process alone is the case in which both are nothing to do. It does not know what is trained.
"""

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many processes train together, and which of them this is."""

    count: int = 1
    rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this one writes logs and states."""
        return self.rank == 0

    def numbers(self, first: int, last: int) -> range:
        """The numbers of the micro-batches that are this process's [first, last); together they take every one."""
        return range(first * self.count + self.rank, last * self.count, self.count)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def agree(self, choice: bool) -> bool:
        """What the leading process chose; the others wait for its word, the devices do not."""
        if self.count == 1:
            return choice
        word = torch.tensor([choice])
        distributed.broadcast(word, src=0)
        return bool(word)

    def all_agree(self, choice: bool) -> bool:
        """Whether every process says so."""
        if self.count == 1:
            return choice
        word = torch.tensor([int(choice)])
        distributed.all_reduce(word, op=distributed.ReduceOp.MIN)
        return bool(word)


ALONE = Replicas()


def join_replicas() -> Replicas:
    """The processes that `torchrun` started, once they have found each other; `ALONE` without it.

    Each takes the GPU of its number on this machine as the current one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        both = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(both)
    return Replicas(count=distributed.get_world_size(), rank=distributed.get_rank())


def leave_replicas() -> None:
    """Take leave of the others, if there are any.

    The group is taken down here and now: left in a cycle until the interpreter ends, its threads (gloo) aborted one
    process in thirty there, after all its work was done.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()
