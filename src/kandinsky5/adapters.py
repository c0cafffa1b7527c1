"""Adapters that requests call by name, and which of them the network wears at the moment.

In: names, files, and what a request asks for. Out: a network with exactly those adapters switched on. Engines over one
network share one of these, since what one switches on the other would draw with. Refuses to know: requests, formats of
files.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kandinsky5.errors import RequestError

if TYPE_CHECKING:
    from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

Worn = tuple[tuple[str, float], ...]
"""Names and weights, as `ImageRequest.lora` has them."""


class NamedAdapters:
    """The adapters beside one pipeline's network. None is switched on until `wear` says so."""

    def __init__(self, pipeline: "Kandinsky5T2IPipeline | Kandinsky5I2IPipeline") -> None:
        self._pipeline = pipeline
        self._digests: dict[str, str] = {}
        self._worn: Worn | None = ()  # None: not known

    @property
    def names(self) -> list[str]:
        """What there is to ask for."""
        return list(self._digests)

    def add(self, name: str, source: str) -> None:
        """Load an adapter; it stands beside the network, which is not loaded again.

        Args:
            name: what requests call it.
            source: a file, a folder or a hub id, as the pipelines' `load_lora_weights` takes it.

        Raises:
            CheckpointError: no such file, a damaged one, or an adapter of another model.
            RequestError: a name that is taken, or a network that cannot take adapters.
        """
        if name in self._digests:
            raise RequestError(f"There is an adapter {name!r} already; give this one another name.")
        lora = self._pipeline.read_lora(source)
        self._pipeline.load_lora_weights(lora, adapter_name=_peft_name(name))
        self._digests[name] = lora.digest()
        worn, self._worn = self._worn, None  # loading has switched the new one on
        self.wear(worn)

    def check(self, asked: Worn | None) -> None:
        """Raise RequestError for a name that is not here."""
        for name, _ in asked or ():
            if name not in self._digests:
                raise RequestError(
                    f"There is no adapter {name!r} here; loaded are {', '.join(self._digests) or 'none'}."
                )

    def digests(self, asked: Worn | None) -> Mapping[str, str]:
        """The SHA-256 of each that is asked for, by its name."""
        return {name: self._digests[name] for name, _ in asked or ()}

    def wear(self, asked: Worn | None) -> None:
        """Exactly these at these weights; None switches all off. Nothing is done where they are worn already."""
        wanted = asked or ()
        if wanted == self._worn:
            return
        self._worn = None
        if wanted:
            self._pipeline.enable_lora()
            names = [_peft_name(name) for name, _ in wanted]
            self._pipeline.set_adapters(names, [weight for _, weight in wanted])
        else:
            self._pipeline.disable_lora()
        self._worn = wanted


def _peft_name(name: str) -> str:
    """A name that a module may have, another for each: peft keeps adapters by it, and modules' names hold no dots."""
    return name.replace("_", "_u").replace(".", "_d")
