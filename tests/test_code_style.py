"""The code reads as the field's does: limits on names, examples, signatures and imports."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_measurements import DIALECT, HOUSE, CodeBase, split_words

MAX_PARAMETERS = 7
MAX_IMPORTS = 15
MIN_EXAMPLE_SHARE = 0.15
MIN_COMMENT_RATIO = 0.03
MAX_ONE_WORD_SHARE = 0.30
MIN_DOCSTRING_WORDS = 4

PRONOUNS = frozenset({"it", "them", "this", "that", "these", "those"})
"""What a summary may not end in: it would say nothing by itself."""


@pytest.fixture(scope="module")
def code() -> CodeBase:
    """The whole code base, parsed once."""
    return CodeBase()


def test_public_functions_are_named_by_a_verb_and_its_object(code: CodeBase) -> None:
    assert code.one_word_share() <= MAX_ONE_WORD_SHARE


def test_public_functions_show_an_example_where_one_is_natural(code: CodeBase) -> None:
    assert code.example_share() >= MIN_EXAMPLE_SHARE


def test_lines_whose_reason_is_not_obvious_have_a_comment(code: CodeBase) -> None:
    assert code.comment_ratio() >= MIN_COMMENT_RATIO


def test_no_function_takes_more_than_seven_parameters(code: CodeBase) -> None:
    assert code.long_signatures(MAX_PARAMETERS) == []


def test_no_module_imports_more_than_fifteen_others(code: CodeBase) -> None:
    assert code.many_imports(MAX_IMPORTS) == []


def test_modules_import_one_another_in_no_circle(code: CodeBase) -> None:
    assert code.import_circles() == []


@pytest.mark.parametrize(
    "line",
    [
        "from sottovoce.server.b import x",
        "from sottovoce.server import b",
        "def f():\n    import sottovoce.server.b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sottovoce.server.b",
        "import importlib\nimportlib.import_module('sottovoce.server.b')",
        "__import__('sottovoce.server.b')",
    ],
)
def test_an_import_circle_is_seen(tmp_path: Path, line: str) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "a.py").write_text(line + "\n")
    (tmp_path / "server" / "b.py").write_text("import sottovoce.server.c\n")
    (tmp_path / "server" / "c.py").write_text("from sottovoce.server.a import f\n")
    (tmp_path / "server" / "d.py").write_text("from sottovoce.server.a import f\n")

    assert CodeBase(tmp_path).import_circles() == [[f"server/{name}.py" for name in "abc"]]


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


def test_every_public_docstring_says_what_the_thing_is(code: CodeBase) -> None:
    """At least four words, that begin neither with "What" nor end in a pronoun."""
    found = [
        f"{one.file}: {one.name}: {summary!r}"
        for one in code.definitions
        if one.is_public and (summary := one.docstring.partition("\n")[0])
        if _is_vague(summary)
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


def test_no_private_name_of_ours_is_patched() -> None:
    """A test that reaches into a module breaks with its inside and states no contract."""
    files = sorted((HOUSE / "tests").rglob("*.py"))
    assert len(files) > 100, "the tests are all there"
    found = [
        f"{file.relative_to(HOUSE)}:{line}"
        for file in files
        for line in _private_patches(file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'monkeypatch.setattr(ledger, "_append", late)',
        'patch.setattr("sottovoce.shared.privacy.ledger._LIMIT", 1)',
        'patch.setattr("sottovoce.shared.privacy.ledger._Store.write", die)',
        'patch.setattr(target=ledger, name="_append", value=late)',
        'monkeypatch.delattr(ledger, "_append")',
        'setattr(ledger, "_append", late)',
        'mock.patch("sottovoce.cli.main._run")',
        'mock.patch.object(ledger, "_append")',
        "monkeypatch.setitem(gradients._RULES, kind, rule)",
        'monkeypatch.setattr(crypto.wrap_key, "__kwdefaults__", {})',
        "ledger._append = late",
    ],
)
def test_a_patch_of_a_private_name_is_seen(line: str) -> None:
    assert list(_private_patches(f"x = 1\n{line}")) == [2]


@pytest.mark.parametrize(
    "line",
    [
        'monkeypatch.setattr(ledger, "LIMIT", 1)',
        'monkeypatch.setattr("sottovoce.shared.features.log_mel.LogMel.__call__", silent)',
        'monkeypatch.setattr(torch, "__version__", "0.0.1")',
        'monkeypatch.setenv("_OTHER", "1")',
        "self._home = home",
        "_home = ledger._append",
    ],
)
def test_what_patches_no_private_name_passes(line: str) -> None:
    assert list(_private_patches(line)) == []


PATCHES = frozenset({"setattr", "delattr", "setitem", "delitem", "patch", "object"})
"""What replaces an attribute: pytest's, the standard library's mock, and Python itself."""

INSIDES = frozenset({"__code__", "__defaults__", "__kwdefaults__", "__dict__"})
"""Python's own names for the inside of a function or an object."""


def _private_patches(source: str) -> Iterator[int]:
    """Lines that replace a private name, in the order of the syntax tree."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _called_name(node) in PATCHES:
            # The last argument is what comes instead; a private helper of the test may do that.
            chosen = [*node.args[:2], *(one.value for one in node.keywords if one.arg != "value")]
            dotted = isinstance(chosen[0], ast.Constant) if chosen else False
            chosen = chosen[:1] if dotted and not node.keywords else chosen
            if any(map(_names_private, chosen)):
                yield node.lineno
        elif isinstance(node, ast.Assign):
            yield from (node.lineno for target in node.targets if _is_foreign_private(target))


def _called_name(call: ast.Call) -> str:
    """The last part of what is called."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _names_private(node: ast.expr) -> bool:
    """Whether an argument of a patch names something private, as a string or as an attribute."""
    if isinstance(node, ast.Constant):
        return any(map(_is_private, str(node.value).split(".")))
    return isinstance(node, ast.Attribute) and _is_private(node.attr)


def _is_foreign_private(target: ast.expr) -> bool:
    """Whether an assignment sets a private attribute of something other than ``self``."""
    if not isinstance(target, ast.Attribute) or not _is_private(target.attr):
        return False
    return not (isinstance(target.value, ast.Name) and target.value.id == "self")


def _is_private(name: str) -> bool:
    """Whether a name begins with an underscore and is not one of Python's own protocols."""
    return name in INSIDES or (name.startswith("_") and not name.endswith("__"))


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
