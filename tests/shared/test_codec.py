"""Records are read with errors that name the path, and hold no NaN."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from sottovoce.shared import codec, validation
from sottovoce.shared.codec import Count, Number, Share
from sottovoce.shared.errors import MessageError, ModelError, SettingError


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
    with pytest.raises(SettingError, match=r"row\.toml: uar is 2; it must be a number <= 1"):
        codec.decode_toml('name = "a"\nuar = 2', Row, name="row.toml")
    with pytest.raises(SettingError, match=r"row\.toml is not TOML"):
        codec.decode_toml("name = ", Row, name="row.toml")


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        validation.require_count(1, 9, size=self.size)


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str
    rate: float = 0.5
    inner: Inner | None = None
    rows: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate = 1", "x: the file lacks name; add it"),
        ('name = "a"\nrate = "b"', "x: rate is 'b'; it must be a number"),
        ('name = "a"\nrate = true', "x: rate is True; it must be a number"),
        ('name = "a"\nrate = 1e999', "x: rate is inf; it must be a finite number"),
        (
            'name = "a"\nrate = 1' + "0" * 400,
            "x: rate is about 1e400; it must be .* 64 bits",
        ),
        ('name = "a"\nraet = 1', r"unknown settings raet \(did you mean rate\?\); known: inner"),
        ('name = "a"\n[inner]\nsizes = 1', r"x: inner has unknown .*did you mean size"),
        ('name = "a"\n[inner]\nsize = 0', "x: inner: size is 0; it must be a whole number from 1"),
        ('name = "a"\n[inner]\nsize = 1.5', r"x: inner\.size is 1\.5; it must be a whole number"),
        ('name = "a"\ninner = 3', "x: inner is 3; it must be a table"),
        ('name = "a"\nrows = 3', "x: rows is 3; it must be a list"),
        ('name = "a"\n[[rows]]\nsiez = 1', r"x: rows\[0\] has unknown"),
        ('name = "a"\nrate = ' + "9" * 5000, "x is not TOML"),
        ('name = "a"\nrate = ' + "[" * 100_000, "x is not TOML"),
        ("a." * 2000 + "b = 1", "nested deeply; it must be within 64 levels"),
        ('name = "a"\nrate = 2020-01-01', "x: rate is .*; it must be a number"),
    ],
    ids=lambda text: text[:40],
)
def test_settings_that_cannot_be_are_named_with_their_way_out(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        codec.decode_toml(text, Settings, name="x")
    assert len(str(caught.value)) < 400


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
