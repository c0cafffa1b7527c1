"""What a command needs beyond the core: looked for before anything is loaded, and named with the way to get it."""

from collections.abc import Collection
from importlib.util import find_spec

from kandinsky5.errors import RequestError


def require_extra(command: str, extra: str, modules: Collection[str]) -> None:
    """Raise RequestError unless every module that `kandinsky5 COMMAND` takes from this extra can be imported."""
    missing = sorted(name for name in modules if find_spec(name) is None)
    if missing:
        raise RequestError(
            f"kandinsky5 {command} needs {', '.join(missing)}, which the extra {extra} brings: pip install "
            f"'kandinsky5[{extra}]' (in a clone: pip install '.[{extra}]')."
        )
