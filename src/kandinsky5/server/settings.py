"""How a server is set up: its bounds, its keys, what it calls its model.

In: what the command line says. Out: `Settings`. Refuses to know: HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Set once. Sizes of bodies in bytes, times in seconds.

    model: what it is called in `/v1/models`; aliases are accepted in requests too.
    keys: name -> API key; empty lets everyone in.
    expands: whether the model's text encoder can write prompts out.
    loras: adapters that requests may name.
    max_pixels, max_steps, max_count: of one request.
    max_body_bytes: of a request's body, files included.
    keep: how long a picture behind a url, or a job after its end, can be had.
    keep_bytes: of pictures kept in memory.
    keep_jobs: jobs kept after their end. Of both, the oldest of the key that holds the most go first.
    grace: at shutdown, for what is accepted.
    hosts: names this server answers to; empty for any.
    """

    model: str
    aliases: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    expands: bool = True
    loras: tuple[str, ...] = ()
    max_pixels: int = 2048 * 2048
    max_steps: int = 200
    max_count: int = 10
    max_body_bytes: int = 50 * 2**20
    keep: float = 3600.0
    keep_bytes: int = 512 * 2**20
    keep_jobs: int = 256
    grace: float = 30.0
    hosts: frozenset[str] = frozenset()
