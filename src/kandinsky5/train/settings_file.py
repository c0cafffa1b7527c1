"""Settings as a TOML file: read, changed by `--set key=value`, and written with a sentence above each key.

In: a text. Out: `TrainingSettings`, or a RequestError that names the key and what would be one. It refuses to know what
settings mean.
"""

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from kandinsky5.errors import RequestError
from kandinsky5.train.settings import TrainingSettings

TITLE = """# A training run of kandinsky5: `kandinsky5 train FILE`. Every value below is the default.
# One of them for one run: `kandinsky5 train FILE --set run.steps=200`.
"""


def read_settings(path: Path, changes: Iterable[str] = ()) -> TrainingSettings:
    """The settings in a TOML file, with `changes` such as "run.steps=200" on top. Paths in it count from its folder.

    Raises:
        RequestError: a file that is missing or no TOML, a key or value that is none.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RequestError(
            f"{path} is missing; `kandinsky5 train init {path}` writes one to start from."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} cannot be read as TOML: {error}.") from error
    for change in changes:
        _apply(tree, change)
    return _build(TrainingSettings, tree, "")  # type: ignore[no-any-return]


def initial_file() -> str:
    """The text of a TOML file with every setting, its default and what it is."""
    return TITLE + "\n" + _tree(TrainingSettings(), says=True)


def as_toml(settings: TrainingSettings) -> str:
    """Settings as the text of a TOML file."""
    return _tree(settings, says=False)


def _tree(settings: TrainingSettings, *, says: bool) -> str:
    lines = _values(settings, says)
    for field in dataclasses.fields(settings):
        part = getattr(settings, field.name)
        if not dataclasses.is_dataclass(part):
            continue
        lines += ["", _heading(f"[{field.name}]", part, says), *_values(part, says)]
        for inner in dataclasses.fields(part):
            value = getattr(part, inner.name)
            for one in value if _is_table(value) else ():
                lines += ["", _heading(f"[[{field.name}.{inner.name}]]", one, says), *_values(one, says)]
    return "\n".join(lines) + "\n"


def _values(part: Any, says: bool) -> list[str]:
    lines = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value) or _is_table(value):
            continue
        if says:
            lines += ["", *(f"# {line}" for line in _wrapped(field.metadata["says"]))]
        lines.append(f"{field.name} = {_toml(value)}")
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _heading(name: str, part: Any, says: bool) -> str:
    return f"{name}  # {(type(part).__doc__ or '').splitlines()[0]}" if says else name


def _wrapped(text: str, width: int = 110) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_toml(one) for one in value)
        return (
            f"[{inner}]"
            if len(inner) < 90
            else "[\n" + "".join(f"    {_toml(one)},\n" for one in value) + "]"
        )
    return json.dumps(value, ensure_ascii=False)  # TOML's strings, numbers and booleans are JSON's


def _apply(tree: dict[str, Any], change: str) -> None:
    """Put "a.b=value" into the tree. The value is TOML; a word without quotes is a text."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise RequestError(f"--set {change!r} is not key=value, such as run.steps=200.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    place: Any = tree
    defaults: Any = TrainingSettings()
    *parents, last = key.strip().split(".")
    for name in parents:
        defaults = getattr(defaults, name, None)
        listed = _is_table(defaults)
        defaults = defaults[0] if listed else defaults
        place = place.setdefault(name, [{}] if listed else {}) if isinstance(place, dict) else None
        if isinstance(place, list) and len(place) == 1:
            place = place[0]
        if not isinstance(place, dict):
            raise RequestError(f"--set {change!r}: {name} holds no settings of its own; say it in the file.")
    place[last] = value


def _build(kind: type, tree: Any, where: str) -> Any:
    """A dataclass of the tree from a mapping. Raises RequestError naming the key."""
    if not isinstance(tree, Mapping):
        raise RequestError(f"{where or 'The file'} must be a table of settings, not {tree!r:.60}.")
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in tree:
        if name not in names:
            raise RequestError(f"{_key(where, name)} is no setting; {_hint(name, names, where)}")
    return kind(**{name: _value(hints[name], value, _key(where, name)) for name, value in tree.items()})


def _hint(name: str, names: Sequence[str], where: str) -> str:
    """What a name that is none of this table's may have meant: the same in another table, or one like it here."""
    meant = [
        key for table, key in _keys(TrainingSettings(), "") if table != where and key.endswith(f".{name}")
    ]
    meant = meant or difflib.get_close_matches(name, names, n=1)
    return f"did you mean {' or '.join(meant)}?" if meant else f"there are {', '.join(names)}."


def _keys(part: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every setting below a part of the tree: its table's name, and its own with that before it."""
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), _key(where, field.name)
        inner = value[0] if _is_table(value) else value
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, key)
        else:
            yield where, key


def _table_of(tables: Sequence[Any], value: Any, where: str) -> Any:
    """The one whose kind a table says; the first where it says none, or is no table."""
    if not isinstance(value, Mapping) or "kind" not in value:
        return tables[0]
    for table in tables:
        if value["kind"] in table.KINDS:
            return table
    kinds = ", ".join(kind for table in tables for kind in table.KINDS)
    raise RequestError(f"{where}.kind = {value['kind']!r} is not one of {kinds}.")


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # of tables that their kind tells apart
        hint = _table_of(get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list):
            raise RequestError(f"{where} must be a list, not {value!r:.60}.")
        if kinds[-1] is ...:
            return tuple(_value(kinds[0], one, where) for one in value)
        if len(kinds) != len(value):
            raise RequestError(f"{where} must be a list of {len(kinds)}, not {value!r:.60}.")
        return tuple(_value(one_kind, one, where) for one_kind, one in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise RequestError(f"{where} must be {names[hint]}, not {value!r:.60}.")
    return value
