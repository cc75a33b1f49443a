"""The code reads as the field's does: limits on names, examples, signatures and imports."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_measurements import DIALECT, HOUSE, CodeBase, split_words

MAX_MODULES = 14
MAX_ONE_WORD_SHARE = 0.30
MIN_DOCSTRING_WORDS = 4

PRONOUNS = frozenset({"it", "them", "this", "that", "these", "those", "there"})
"""What a summary may not end in: it would say nothing by itself."""


@pytest.fixture(scope="module")
def code() -> CodeBase:
    """The whole code base, parsed once."""
    return CodeBase()


def test_public_functions_are_named_by_a_verb_and_its_object(code: CodeBase) -> None:
    assert code.one_word_share() <= MAX_ONE_WORD_SHARE


def test_no_folder_is_crowded(code: CodeBase) -> None:
    assert code.crowded_folders(MAX_MODULES) == []


def test_no_public_name_uses_a_word_of_the_dialect(code: CodeBase) -> None:
    assert [
        f"{one.file}: {one.name}"
        for one in code.definitions
        if one.is_public and DIALECT & set(one.words)
    ] == []


def test_no_field_or_parameter_uses_a_word_of_the_dialect(code: CodeBase) -> None:
    assert list(code.dialect_fields()) == []


def test_no_option_uses_a_word_of_the_dialect() -> None:
    from sottovoce.cli.main import build_parser

    options = set(_options(build_parser()))
    assert len(options) > 30, "the parser is all there"
    assert [option for option in options if DIALECT & set(re.split(r"\W+", option))] == []


def test_no_heading_uses_a_word_of_the_dialect() -> None:
    headings = [(page, line) for page in _pages() for line in _headings(page)]
    assert len(headings) > 50, "the documentation is all there"
    found = [
        f"{page.relative_to(HOUSE)}: {line}"
        for page, line in headings
        if DIALECT & set(re.findall(r"[a-z]+", line.lower())) or "hangs together" in line.lower()
    ]
    assert found == []


@pytest.mark.parametrize(
    "summary",
    ["As it travels.", "What a device sends in a round.", "Read a plan back and keep it."],
)
def test_a_vague_docstring_is_seen(summary: str) -> None:
    assert _is_vague(summary)


def test_an_everyday_word_in_a_name_is_seen() -> None:
    assert DIALECT & set(split_words("logits_heard"))
    assert not DIALECT & set(split_words("replace_file")), "a word is not a part of a word"


def _is_vague(summary: str) -> bool:
    words = re.findall(r"[\w'’`.*-]+", summary.rstrip("."))
    if summary.startswith("See "):  # an override says where its contract is
        return False
    too_short = len(words) < MIN_DOCSTRING_WORDS
    return too_short or words[0] == "What" or words[-1].lower() in PRONOUNS


def _options(parser: object) -> Iterator[str]:
    """All option strings of a parser and of the commands below it."""
    for action in parser._actions:  # type: ignore[attr-defined]  # argparse has no public list
        yield from action.option_strings
        if isinstance(choices := getattr(action, "choices", None), dict):
            for inner in choices.values():
                yield from _options(inner)


def _pages() -> list[Path]:
    """Every page of the documentation that a person reads; the changelog tells of the past."""
    return [HOUSE / "README.md", HOUSE / "CONTRIBUTING.md", *sorted(HOUSE.glob("docs/**/*.md"))]


def _headings(page: Path) -> list[str]:
    """A page's headings, but those within blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"^#{1,6} +(.*)$", text, flags=re.M)
