"""What diffusers' `from_pretrained` takes about the hub, in our words.

In: keyword arguments, out of which those about the hub are taken. Out: a `HubArguments`, and the folder they lead to.
Refuses to know: what is done with the folder.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kandinsky5.errors import RequestError
from kandinsky5.hub.access import HubAccess
from kandinsky5.hub.bars import Watch, bars
from kandinsky5.hub.need import Need
from kandinsky5.hub.transfer import fetch
from kandinsky5.variants import A_FILE


@dataclass(frozen=True, kw_only=True)
class HubArguments:
    """`token`, `cache_dir` and `local_files_only` as an access; `revision`; and `force_download` as `force`."""

    access: HubAccess = field(default_factory=HubAccess)
    revision: str | None = None
    force: bool = False

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> Self:
        """Take the arguments about the hub out of a mapping.

        Raises:
            RequestError: `proxies`, which the hub's client no longer takes.
        """
        if arguments.pop("proxies", None):
            raise RequestError(
                "proxies is not taken: set HTTPS_PROXY in the environment, which the client reads."
            )
        cache_dir = arguments.pop("cache_dir", None)
        return cls(
            access=HubAccess(
                token=arguments.pop("token", None),
                cache_dir=Path(cache_dir) if cache_dir is not None else None,
                local_files_only=bool(arguments.pop("local_files_only", None)),
            ),
            revision=arguments.pop("revision", None),
            force=bool(arguments.pop("force_download", False)),
        )

    def folder(self, name: str, need: Need, watch: Watch = bars) -> Path:
        """The folder that a name stands for: itself if there is one, else what is fetched for it as a hub id.

        Raises:
            RequestError: a revision, or a fresh download, of a folder; a file.
            CheckpointError, CapacityError: as `fetch`.
        """
        if os.path.isdir(name):  # noqa: PTH112 - Path.is_dir fails with a text too long for a name
            asked = "revision" if self.revision is not None else "force_download" if self.force else None
            if asked is not None:
                raise RequestError(f"{asked} is for hub ids, and {name} is a folder; leave it out.")
            return Path(name)
        if os.path.isfile(name):  # noqa: PTH113 - as above
            raise RequestError(f"{name} is {A_FILE}")
        return fetch(name, need, revision=self.revision, access=self.access, force=self.force, watch=watch)
