"""No condition on the privacy unit outside the schemes: whatever depends on it is theirs to say."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.shared.privacy.schemes import unit_names

HOUSE = Path(__file__).resolve().parent.parent
ROOMS = ("shared", "client", "server", "simulations", "sottovoce")

SCHEMES = ("shared/privacy/schemes/", "shared/privacy/scheme.py")
"""Where conditions on the unit belong."""

MECHANISMS = (
    "shared/privacy/accounting/composition.py",
    "shared/privacy/release.py",
    "shared/privacy/ledger.py",
    "shared/privacy/user_level.py",
    "simulations/verification/second_accountant.py",
)
"""What a record costs one unit depends on the unit's neighbouring relation, and its own record."""

EXPERIMENTS = "simulations/experiments/"
"""Lists of runs to make, which name units as options; they decide nothing in a run."""

RECIPES = "server/planning/recipe.py"
"""The usual settings of each unit, found by measurement; a further unit takes the user's."""

_GONE = frozenset(
    {
        "hides_users",
        "hides_utterances",
        "privacy_unit",
        "samples_users",
        "utterance_level",
    }
)
"""Names of questions that were once asked everywhere."""

_PLANS = frozenset({"plan", "_plan", "agreed"})
"""What plans are called."""


def conditions(source: str) -> list[str]:
    """Every place that asks which unit is protected, as ``line: what``."""
    return [f"{line}: {what}" for line, what in _found(ast.parse(source))]


def _found(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from _wrong_attribute(node)
        elif isinstance(node, ast.Compare):
            yield from _wrong_comparison(node)
        elif isinstance(node, ast.Dict) and _is_table_of_units(node):
            yield node.lineno, "a table over the names of units"
        for test in _tests_of(node):
            if isinstance(test, ast.Attribute) and test.attr == "secure":
                yield test.lineno, "asks whether sums are secure"


def _wrong_attribute(node: ast.Attribute) -> Iterator[tuple[int, str]]:
    if node.attr in _GONE:
        yield node.lineno, f"asks {node.attr}"
    elif node.attr == "user" and _is_plan(node.value):
        yield node.lineno, "reads a plan's user; ask plan.scheme"


def _wrong_comparison(node: ast.Compare) -> Iterator[tuple[int, str]]:
    sides = [node.left, *node.comparators]
    if any(map(_is_unit, sides)) and any(map(_names_a_unit, sides)):
        yield node.lineno, "compares a unit with a name"
    elif any(isinstance(one, ast.Attribute) and one.attr == "noised_by" for one in sides):
        yield node.lineno, "asks who adds the noise"
    elif any(map(_is_privacy_unit, sides)) and not _is_membership(node):
        yield node.lineno, "compares with a PrivacyUnit"


def _is_plan(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _PLANS or node.id.endswith("_plan")
    return isinstance(node, ast.Attribute) and node.attr in _PLANS


def _is_unit(node: ast.expr) -> bool:
    """``unit``, ``x.unit`` or ``x["unit"]``."""
    if isinstance(node, ast.Name):
        return node.id == "unit"
    if isinstance(node, ast.Attribute):
        return node.attr == "unit"
    key = node.slice if isinstance(node, ast.Subscript) else None
    return isinstance(key, ast.Constant) and key.value == "unit"


def _names_a_unit(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(_names_a_unit, node.elts))
    return isinstance(node, ast.Constant) and node.value in unit_names()


def _is_privacy_unit(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "PrivacyUnit"
    )


def _is_membership(node: ast.Compare) -> bool:
    """Whether it asks if a scheme has a unit, which further units answer as well."""
    return all(isinstance(one, ast.In | ast.NotIn) for one in node.ops)


def _is_table_of_units(node: ast.Dict) -> bool:
    keys = {one.value for one in node.keys if isinstance(one, ast.Constant)}
    return len(keys) > 1 and keys <= set(unit_names()) and {"utterance", "user"} < keys


def _tests_of(node: ast.AST) -> Iterator[ast.expr]:
    """The parts of a condition."""
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield node.test
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand


def test_nothing_outside_the_schemes_asks_for_the_unit() -> None:
    excused = (*SCHEMES, *MECHANISMS, EXPERIMENTS, RECIPES)
    found = [
        f"{name}:{what}"
        for room in ROOMS
        for file in sorted((HOUSE / room).rglob("*.py"))
        if not (name := file.relative_to(HOUSE).as_posix()).startswith(excused)
        for what in conditions(file.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_excused_files_are_there_and_ask() -> None:
    """An excuse that nobody needs any more goes."""
    for name in (*MECHANISMS, "shared/privacy/schemes/both.py", "shared/privacy/schemes/user.py"):
        source = (HOUSE / name).read_text(encoding="utf-8")
        assert "PrivacyUnit" in source or "user" in source, name


@pytest.mark.parametrize(
    "line",
    [
        "if plan.user: pass",
        "if self.job.plan.user is not None: pass",
        "norm = plan.user.update.clip_norm",
        "rows = 1 if plan.scheme.unit == 'user' else 0",
        "if scenario.unit != 'none': pass",
        "if privacy['unit'] in ('user', 'both'): pass",
        "if plan.utterance_level: pass",
        "own = scenario.hides_users and 3",
        "if budget.unit is PrivacyUnit.USER: pass",
        "if scenario.secure: pass",
        "x = a if asked.secure else b",
        "WORDS = {'utterance': 'one', 'user': 'all', 'both': 'two'}",
        "if mechanism.noised_by is NoiseSource.SERVER: pass",
    ],
)
def test_each_kind_of_condition_is_found(line: str) -> None:
    assert conditions(line), line


@pytest.mark.parametrize(
    "line",
    [
        "limit = plan.scheme.max_device_norm(plan, kind)",
        "user = device.profile.user",
        "if PrivacyUnit.UTTERANCE in plan.scheme.audited_units: pass",
        "found = scheme_for(privacy['unit'], secure=asked['secure'])",
        "if release.user is None: pass",
        "deltas = {PrivacyUnit.UTTERANCE: 1e-5, PrivacyUnit.USER: 1e-3}",
    ],
)
def test_what_asks_a_scheme_is_none(line: str) -> None:
    assert conditions(line) == []
