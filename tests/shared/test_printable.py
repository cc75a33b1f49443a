"""Foreign text reaches terminals, logs and pages as something to read, never as an order."""

import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.shared import printable

HOUSE = Path(__file__).resolve().parents[2]
ANY_TEXT = st.text(st.characters(), max_size=60)  # surrogates included
HOSTILE = {
    "clears the screen": ("\x1b[2J", r"\x1b[2J"),
    "sets the title": ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    "eight-bit control": ("\x9b31m", r"\x9b31m"),
    "goes back to the line's start": ("bad\rok ", r"bad\rok "),
    "begins a line": ("x\nsottovoce: done", r"x\nsottovoce: done"),
    "begins a line, in Unicode": ("x\u2028y\x85z", r"x\u2028y\x85z"),
    "reverses": ("\u202egpj.exe", r"\u202egpj.exe"),
    "isolates": ("\u2066a\u2069", r"\u2066a\u2069"),
    "hides": ("pa\u200bypal\ufeff", r"pa\u200bypal\ufeff"),
    "writes invisible tags": ("\U000e0041", r"\U000e0041"),
    "file name in Latin-1": ("caf\udce9.wav", r"caf\xe9.wav"),
    "half a letter": ("\ud83d", r"\ud83d"),
}
ORDINARY = ["Zoë", "فارسی\u200cها", "日本語", "👩\u200d🔬", "naïve façade", "C:\\temp\\new", "50 %"]


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=list(HOSTILE))
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert printable.clean_text(text) == shown


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_of_any_script_stays(text: str) -> None:
    assert printable.clean_text(text) == text


@given(ANY_TEXT)
def test_clean_text_is_one_line_that_can_be_encoded_and_stays_clean(text: str) -> None:
    shown = printable.clean_text(text)

    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert not {unicodedata.category(one) for one in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert printable.clean_text(shown) == shown


def test_a_name_of_megabytes_is_cut() -> None:
    shown = printable.clean_text("a" * 10_000_000)

    assert len(shown) == printable.MAX_LINE
    assert shown.endswith(" ...")


@given(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3))
def test_cleaned_json_is_the_same_value(value: dict[str, str]) -> None:
    text = printable.clean_json(json.dumps(value, ensure_ascii=False, indent=1))

    assert json.loads(text) == value
    text.encode()
    assert "\u202e" not in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_lines_are_printed_whatever_the_terminal_can_encode(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)

    printable.print_lines("Zoë 日本 \udce9", file=stream)

    stream.seek(0)
    assert stream.read().startswith("Zo")


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What a handler of a logger of ours writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = printable.get_logger("sottovoce.test")
    logger.addHandler(handler)
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)


def test_a_log_record_is_one_line_whatever_is_logged(logged: io.StringIO) -> None:
    printable.get_logger("sottovoce.test").warning("%s refused", "ada\n\x1b[2JINFO all is well")

    assert logged.getvalue() == "ada\\n\\x1b[2JINFO all is well refused\n"


def test_a_traceback_in_a_log_holds_no_control_character(logged: io.StringIO) -> None:
    try:
        raise ValueError("\x1b[2J\nWARNING nothing happened")
    except ValueError:
        printable.get_logger("sottovoce.test").exception("failed")

    lines = logged.getvalue().splitlines()
    assert lines[0] == "failed"
    assert all(line.startswith("  ") for line in lines[1:])
    assert "\x1b" not in logged.getvalue()


def test_loggers_are_made_in_one_place() -> None:
    direct = [
        path.relative_to(HOUSE).as_posix()
        for folder in ("client", "server", "shared", "simulations", "sottovoce")
        for path in (HOUSE / folder).rglob("*.py")
        if 'getLogger("sottovoce.' in path.read_text(encoding="utf-8")
    ]

    assert direct == []
