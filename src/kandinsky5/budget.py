"""How much memory a pipeline may take, and what for: the words of `--memory` as a record.

In: "8GB" or "auto", and the largest request that is expected. Out: a `Budget`. Refuses to know: what is free or fits.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from kandinsky5.errors import RequestError

UNITS: Final = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
AMOUNT: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zA-Z]+)")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the planner may count on.

    device_bytes: of the device, libraries and all; None is what is free.
    host_bytes: of the host, for weights that wait there; None is what is free.
    width, height: pixels of the largest picture; None is the model's own size.
    pictures: drawn at once.
    """

    device_bytes: int | None = None
    host_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    pictures: int = 1

    def __post_init__(self) -> None:
        """Raise RequestError for what is no whole number from 1 on."""
        for name, value in vars(self).items():
            if (value is not None or name == "pictures") and (type(value) is not int or value < 1):
                raise RequestError(f"{name}={value!r:.80} of a budget must be a whole number from 1 on.")

    @classmethod
    def of(
        cls, memory: str, *, width: int | None = None, height: int | None = None, pictures: int = 1
    ) -> Self:
        """The budget that a text names: "8GB", "7.5 GiB" or "auto", and after a colon that of the host ("8GB:16GB").

        Raises:
            RequestError: a text that is no amount.
        """
        device, colon, host = memory.partition(":")
        return cls(
            device_bytes=_amount(device),
            host_bytes=_amount(host) if colon else None,
            width=width,
            height=height,
            pictures=pictures,
        )


def _amount(text: str) -> int | None:
    """Bytes; None for "auto"."""
    if text.strip().lower() == "auto":
        return None
    match = AMOUNT.fullmatch(text.strip())
    size = round(float(match[1]) * UNITS.get(match[2].upper(), 0)) if match else 0
    if not size:
        raise RequestError(
            f"memory={text!r} is no amount: say 8GB, 7.5GB, 6GiB, 800MB, or auto; 8GB:16GB also bounds the host."
        )
    return size
