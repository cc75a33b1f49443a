"""Records as JSON and TOML: read with errors that name the path, written with stable numbers.

A record is a frozen dataclass or a ``TypedDict``. Its types are its schema: what a file must hold
is written once, as fields with constraints (:data:`Share`, :data:`Count`), and both the reader's
checks and the published JSON Schema come from them. msgspec does the work.
"""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.shared.validation import format_value, suggest_name

Record = TypeVar("Record")

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A whole number, 0 or above."""

Number = float | None
"""A finite number; null where nothing could be measured, or where there is no guarantee."""

# Means of shares may miss the bounds by their last digits.
Share = Annotated[float, msgspec.Meta(ge=-1e-9, le=1 + 1e-9)] | None
"""A number from 0 to 1; null where nothing could be measured."""

MAX_DEPTH = 64
"""Most objects and lists of a JSON text that are open at once."""
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
"""Strings, so that brackets inside them are passed over, and brackets."""
MAX_WHOLE_NUMBER: Final = 2**64
"""Larger than any whole number of ours; TOML and other readers promise 64 bits."""

_MAX_SHOWN: Final = 120

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""64 hexadecimal digits."""

Ed25519Signature = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]
"""128 hexadecimal digits."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
"""A text of 1 to 200 characters."""

LongName = Annotated[str, msgspec.Meta(min_length=1, max_length=5_000)]
"""A text of 1 to 5,000 characters, such as a path."""


def decode_json(
    data: bytes | str,
    record: type[Record],
    *,
    name: str,
    error: type[SottovoceError] = MessageError,
) -> Record:
    """Read a record from JSON.

    Args:
        data: The text.
        record: What it must hold. Keys that it does not name are ignored.
        name: What to call the text in messages.
        error: Class of the error.

    Raises:
        SottovoceError: Of class ``error``: it is no JSON, or breaks the record's types; the message
            names the path, such as ``accuracy.per_fold[0]``.

    Example:
        >>> decode_json('[3, "many"]', list[Count], name="rounds.json")
        Traceback (most recent call last):
        ...
        sottovoce.shared.errors.MessageError: rounds.json is damaged: at [1]: expected ...
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        _require_shallow(text)
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as fault:
        raise error(f"{name} is damaged: {fault}") from fault
    return convert_record(content, record, name=name, error=error)


def decode_toml(
    text: str, record: type[Record], *, name: str, error: type[SottovoceError] = SettingError
) -> Record:
    """Read settings, as people write them, from TOML; see :func:`convert_settings`.

    Example:
        >>> decode_toml("rounds = 3", dict[str, Count], name="job.toml")
        {'rounds': 3}
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:  # a number of thousands of digits; brackets
        raise error(f"{name} is not TOML: {_shorten(str(fault))}") from fault
    return convert_settings(content, record, name=name, error=error)


def convert_settings(
    content: object,
    record: type[Record],
    *,
    name: str,
    error: type[SottovoceError] = SettingError,
) -> Record:
    """Check that plain values are settings; unlike those of a record, all keys must be known.

    Args:
        content: Whatever was read.
        record: What it must be; frozen dataclasses check themselves when they are made.
        name: What to call it in messages; empty where it needs no name, as options of a command.
        error: Class of the error.

    Guarantees:
        - No number of what comes back is NaN, infinite, or a whole number beyond 64 bits.

    Raises:
        SottovoceError: Of class ``error``; the message holds the path, the value, what it must be,
            and the name that was meant where a key is misspelt.

    Example:
        >>> convert_settings([3, -1], list[Count], name="rounds.toml")
        Traceback (most recent call last):
        ...
        sottovoce.shared.errors.SettingError: rounds.toml: [1] is -1; it must be a whole number >= 0
    """
    unfit = _find_unfit_value(content)
    fault = "{} is {}; it must be {}".format(*unfit) if unfit else ""
    fault = fault or _find_unknown_key(content, record)
    if fault:
        raise error(f"{name}: {fault}".removeprefix(": "))
    _check_tables(content, record, "", name, error)
    return msgspec.convert(content, record)


def convert_record(
    content: object,
    record: type[Record],
    *,
    name: str,
    error: type[SottovoceError] = MessageError,
) -> Record:
    """Check that plain values, as a JSON or TOML reader gives them, are a record.

    Args:
        content: Whatever was read.
        record: What it must be.
        name: What to call it in messages.
        error: Class of the error.

    Guarantees:
        - No number of what comes back is NaN or infinite.

    Raises:
        SottovoceError: Of class ``error``; the message names the path.
    """
    unfit = _find_unfit_value(content)
    if unfit:
        where, found, wanted = unfit
        raise error(f"{name} is damaged: at {where}: expected {wanted}, found {found}")
    try:
        return msgspec.convert(content, record)
    except msgspec.ValidationError as fault:
        raise error(f"{name} is damaged: {_describe(content, str(fault))}") from fault
    except SottovoceError as fault:  # what a dataclass refuses when it is made
        raise error(f"{name} is damaged: {fault}") from fault
    except (OverflowError, UnicodeError) as fault:  # half a letter, or hundreds of digits
        raise error(f"{name} is damaged: {fault}") from fault


def to_plain(value: Any) -> Any:  # noqa: ANN401  (whatever a record may hold)
    """Turn a record into JSON's own types, a field at its default left out.

    Tuples become lists and enumerations their values. Numbers stay as they are; see
    ``simulations.results.schema.to_plain_json`` for those of result files.

    Example:
        >>> to_plain({"labels": ("sad", "happy"), 3: Path("model")})
        {'labels': ['sad', 'happy'], '3': 'model'}
    """
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in fields(value)
            if field.default is MISSING or getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build_json_schema(record: Any, *, title: str) -> dict[str, Any]:  # noqa: ANN401  (any type)
    """The JSON Schema (draft 2020-12) of a record.

    Example:
        >>> build_json_schema(dict[str, Count], title="rounds of folds")["additionalProperties"]
        {'type': 'integer', 'minimum': 0}
    """
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | msgspec.json.schema(record)


def _find_unfit_value(content: object) -> tuple[str, str, str] | None:
    """Path of the first value that no record can hold, the value, and what it must be.

    A loop, since what a stranger nests may be deeper than this program's own calls can go.
    """
    left: list[tuple[str, object, int]] = [("", content, 0)]
    while left:
        path, value, depth = left.pop()
        where = path or "the top"
        if isinstance(value, float) and not math.isfinite(value):
            return where, str(value), "a finite number"
        if isinstance(value, int) and not -MAX_WHOLE_NUMBER <= value <= MAX_WHOLE_NUMBER:
            return where, format_value(value), "a number of 64 bits"
        if isinstance(value, str) and not _is_unicode(value):
            return where, format_value(value), "a text of Unicode characters: rename what it names"
        if depth > MAX_DEPTH:
            return where[:_MAX_SHOWN], "nested deeply", f"within {MAX_DEPTH} levels"
        if isinstance(value, dict):
            inner = [(f"{path}.{key}".removeprefix("."), item) for key, item in value.items()]
            inner += [(f"the key {key!r}", key) for key in value if isinstance(key, str)]
        elif isinstance(value, list):
            inner = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        else:
            continue
        left += [(at, item, depth + 1) for at, item in reversed(inner)]
    return None


def _is_unicode(text: str) -> bool:
    """Whether a text can be written; bytes of a file name that are no UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_unknown_key(content: object, record: object, path: str = "") -> str:
    """What is wrong with the first key that a table does not know; "" where all are known."""
    kind = _table_type(record)
    if isinstance(content, Sequence) and not isinstance(content, str):
        items = get_args(record)[:1] if get_origin(record) in (tuple, list) else ()
        rows = [(f"{path}[{index}]", item) for index, item in enumerate(content)] if items else []
        return next((f for at, row in rows if (f := _find_unknown_key(row, items[0], at))), "")
    if kind is None or not isinstance(content, Mapping):
        return ""
    hints = get_type_hints(kind)
    unknown = sorted(str(key) for key in content if key not in hints)
    if unknown:
        return (
            f"{path or 'scenario'} has unknown settings {_shorten(', '.join(unknown))}"
            f"{suggest_name(unknown[0], hints)}; known: {', '.join(sorted(hints))}"
        )
    return next(
        (
            found
            for key, item in content.items()
            if (found := _find_unknown_key(item, hints[key], f"{path}.{key}".removeprefix(".")))
        ),
        "",
    )


def _check_tables(
    content: object,
    record: Any,  # noqa: ANN401  (any type)
    path: str,
    name: str,
    error: type[SottovoceError],
) -> None:
    """Check inner tables first, so that what a dataclass refuses at birth is named by its path."""
    kind = _table_type(record)
    if kind is not None and isinstance(content, Mapping):
        for key, hint in get_type_hints(kind).items():
            if isinstance(content.get(key), Mapping):
                _check_tables(content[key], hint, f"{path}.{key}".removeprefix("."), name, error)
    where = ": ".join(part for part in (name, path) if part)
    try:
        msgspec.convert(content, record)
    except msgspec.ValidationError as fault:
        said = f"{name}: {_describe_setting(content, str(fault), path)}"
        raise error(said.removeprefix(": ")) from fault
    except SottovoceError as fault:
        raise error(f"{where}: {fault}".removeprefix(": ")) from fault


def _table_type(record: object) -> type | None:
    """The dataclass that a type is, or may be beside None."""
    for option in (record, *get_args(record)):
        if isinstance(option, type) and is_dataclass(option):
            return option
    return None


_WANTED: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
"""What people call the types of TOML."""


def _describe_setting(content: object, fault: str, within: str) -> str:
    """A fault as msgspec words it, with path and value first and what it must be behind them."""
    what, _, where = fault.partition(" - at ")
    inner = where.strip("`").removeprefix("$").removeprefix(".")
    path = f"{within}.{inner}".strip(".").replace(".[", "[") or "the file"
    lacking = re.fullmatch(r"Object missing required field `(.*)`", what)
    if lacking:
        return f"{path} lacks {lacking[1]}; add it"
    wanted = re.sub(r",? got `.*`", "", what.removeprefix("Expected "))
    wanted = re.sub(r"`(\w+)(?: \| null)?`", lambda one: _WANTED.get(one[1], one[0]), wanted)
    found = format_value(_value_at(content, inner) if inner else content)
    return f"{path} is {found}; it must be {wanted}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _describe(content: object, fault: str) -> str:
    """A fault as msgspec words it, with the path first, and the value that is found there."""
    what, _, where = fault.partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".") or "the top"
    found = _value_at(content, path)
    found = found[:60] if isinstance(found, str) else found
    said = f", found {found!r:.70}" if isinstance(found, str | int | float) else ""
    return f"at {path}: {what[:1].lower()}{what[1:]}{said}"


def _value_at(content: object, path: str) -> object:
    """The value at a path such as ``a.b[3]``; None where that cannot be followed."""
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(content, list) and step.isdigit() and int(step) < len(content):
            content = content[int(step)]
        elif isinstance(content, dict):
            content = content.get(step)
        else:
            return None
    return content


def _require_shallow(text: str) -> None:
    """Refuse nesting beyond ``MAX_DEPTH`` before a parser follows it down."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} brackets are open at once")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
