"""Records are read with errors that name the path, and hold no NaN."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from sottovoce.shared import codec
from sottovoce.shared.codec import Count, Number, Share
from sottovoce.shared.errors import MessageError, ModelError


class Row(TypedDict):
    name: str
    uar: Share
    n: NotRequired[Count]


class Kind(Enum):
    LINEAR = "linear"


@dataclass(frozen=True, kw_only=True)
class Facts:
    kind: Kind
    rows: tuple[Row, ...]
    epsilon: Number = None


TEXT = '{"kind": "linear", "rows": [{"name": "a", "uar": 0.5}], "more": 1}'


def test_a_record_is_read_and_written_back() -> None:
    facts = codec.decode_json(TEXT, Facts, name="facts.json")

    assert facts == Facts(kind=Kind.LINEAR, rows=({"name": "a", "uar": 0.5},))
    assert codec.to_plain(facts) == {"kind": "linear", "rows": [{"name": "a", "uar": 0.5}]}
    assert codec.convert_record(codec.to_plain(facts), Facts, name="again") == facts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"linear"', '"cubic"', r"facts\.json is damaged: at kind: .*cubic"),
        ('"name": "a", ', "", r"at rows\[0\]: .*`name`"),
        ("0.5", "1.5", r"at rows\[0\]\.uar: .*found 1\.5"),
        ("0.5", "true", r"at rows\[0\]\.uar"),
        ("0.5", "NaN", "NaN is no number"),
        ("0.5", "-Infinity", "-Infinity is no number"),
        ("0.5", "1e999", r"at rows\[0\]\.uar: expected a finite number"),
        ("}]", '}, {"name": "b", "uar": 1, "n": -1}]', r"at rows\[1\]\.n: .*found -1"),
        ("]", "", "damaged"),
    ],
)
def test_damage_is_named_by_its_path(old: str, new: str, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        codec.decode_json(TEXT.replace(old, new, 1), Facts, name="facts.json")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_record_is_nan_or_infinite(bad: float) -> None:
    with pytest.raises(ModelError, match=r"at deep\[1\]\.x: expected a finite number"):
        codec.convert_record({"deep": [0, {"x": bad}]}, dict[str, Any], name="m", error=ModelError)


def test_toml_is_read_by_the_same_types() -> None:
    assert codec.decode_toml('name = "a"\nuar = 1', Row, name="row.toml") == {"name": "a", "uar": 1}
    with pytest.raises(MessageError, match=r"row\.toml is damaged: at uar"):
        codec.decode_toml('name = "a"\nuar = 2', Row, name="row.toml")
    with pytest.raises(MessageError, match=r"row\.toml is damaged"):
        codec.decode_toml("name = ", Row, name="row.toml")


def test_what_json_has_no_type_for_is_made_plain() -> None:
    assert codec.to_plain({1: (Path("a") / "b", Kind.LINEAR, None)}) == {
        "1": ["a/b", "linear", None]
    }


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "[" + "9" * 400 + "]",
        '["\\ud800"]',
        "[1e999]",
        "[NaN]",
        b"\xff\xfe",
        '"' + "\\" * 100_001,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_extreme_texts_are_refused_in_its_own_words(text: str | bytes) -> None:
    with pytest.raises(MessageError, match="note is damaged") as caught:
        codec.decode_json(text, list[float], name="note")

    assert len(str(caught.value)) < 500


def test_brackets_in_strings_open_nothing() -> None:
    text = '["' + "[" * 1_000 + '\\"["]'

    assert codec.decode_json(text, list[str], name="note") == ["[" * 1_000 + '"[']
