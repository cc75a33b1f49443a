"""Mutants of a module: mutmut's operators, and two for what privacy rests on.

mutmut has no operator that leaves a call out (a sync, a lock, a check) and none that takes a
refusal away; both are here. What says nothing of behaviour is not mutated: annotations, decorators,
documentation, imports, the text of errors and logs, and texts for people (with a space in them).
Of each line one mutant counts at most, or lines with many arguments would be most of a sample.
Nothing is mutated twice: a mutant is one change.
"""

import bisect
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst import matchers
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper
from mutmut.mutation.mutators import mutation_operators

_SKIPPED = (
    cst.Annotation,
    cst.Decorator,
    cst.Import,
    cst.ImportFrom,
    cst.Raise,
    cst.FormattedString,
    cst.ConcatenatedString,
)
_QUIET_CALLS = matchers.Call(
    func=matchers.Name("cast")
    | matchers.Name("len")
    | matchers.Name("isinstance")
    | matchers.Attribute(value=matchers.Name("LOG") | matchers.Name("_LOG"))
)
"""They say nothing of behaviour, or no mutant of theirs could live."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One change of one module.

    Attributes:
        path: Of the module, within the checkout.
        function: Qualified name of what it is in; empty at the module's own level.
        lines: First and last line that it changes, from 1.
        start: Where the changed bytes begin.
        end: Where they end.
        code: What takes their place.
        before: The changed lines as they were, in one line.
        after: The same lines afterwards.
        number: How many equal changes in the same function come before.
    """

    path: str
    function: str
    lines: tuple[int, int]
    start: int
    end: int
    code: str
    before: str
    after: str
    number: int = 0

    @property
    def key(self) -> str:
        """Name that stays as long as the function and the changed lines do."""
        facts = (self.path, self.function, self.before, self.after, str(self.number))
        return hashlib.sha256("\x1f".join(facts).encode()).hexdigest()[:12]

    def apply(self, source: bytes) -> bytes:
        """The whole module, changed."""
        return source[: self.start] + self.code.encode() + source[self.end :]


def rank(seed: int, name: str) -> str:
    """Place of a name in a random order that edits elsewhere do not change."""
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def find_mutants(home: Path, path: str, seed: int) -> list[Mutant]:
    """All mutants of a module, one a line, chosen by the seed.

    What only puts None in a value's place comes last: most of those end in a TypeError at once.
    """
    source = (home / path).read_bytes()
    by_line: dict[int, Mutant] = {}

    def place(one: Mutant) -> tuple[bool, str]:
        only_none = one.after.count("None") > one.before.count("None")
        return only_none, rank(seed, one.key)

    for mutant in _numbered(_Finder(path, source).find()):
        first = mutant.lines[0]
        by_line[first] = min(by_line.get(first, mutant), mutant, key=place)
    return list(by_line.values())


def _numbered(mutants: Iterator[Mutant]) -> Iterator[Mutant]:
    """Tell equal changes of one function apart."""
    seen: dict[str, int] = {}
    for one in mutants:
        number = seen.get(one.key, 0)
        seen[one.key] = number + 1
        yield one if not number else _with_number(one, number)


def _with_number(one: Mutant, number: int) -> Mutant:
    facts = {name: getattr(one, name) for name in Mutant.__slots__}
    return Mutant(**facts | {"number": number})


class _Finder(cst.CSTVisitor):
    """Walks through a module and notes each change that can be made."""

    def __init__(self, path: str, source: bytes) -> None:
        super().__init__()
        self._path, self._source = path, source
        self._wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
        self._spans = self._wrapper.resolve(ByteSpanPositionProvider)
        self._text = source.decode().split("\n")
        self._starts = [0, *(at + 1 for at, byte in enumerate(source) if byte == ord("\n"))]
        self._names: list[str] = []
        self._found: list[Mutant] = []

    def find(self) -> Iterator[Mutant]:
        self._wrapper.module.visit(self)
        return iter(self._found)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, _SKIPPED) or matchers.matches(node, _QUIET_CALLS):
            return False
        if _is_documentation(node) or _is_type_checking(node) or _is_dunder(node):
            return False
        for changed, code in self._changes(node):
            self._note(changed, code)
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._names.append(node.name.value)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._names.pop()

    def _changes(self, node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, str]]:
        """Nodes, and code that may take their places."""
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and not _is_text(node):
                for changed in operator(node):
                    yield node, self._wrapper.module.code_for_node(changed)
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.Call):
            yield node, "pass"
        if isinstance(node, cst.If) and node.orelse is None and _only_raises(node.body):
            yield node.test, "False"

    def _note(self, node: cst.CSTNode, code: str) -> None:
        span = self._spans[node]
        end = span.start + span.length
        old = self._source[span.start : end].decode()
        if code.strip() == old.strip():
            return
        first = bisect.bisect_right(self._starts, span.start)
        last = first + old.rstrip().count("\n")
        head = self._source[self._starts[first - 1] : span.start].decode()
        tail = self._source[end : self._starts[last]].decode() if last < len(self._starts) else ""
        self._found.append(
            Mutant(
                path=self._path,
                function=".".join(self._names),
                lines=(first, last),
                start=span.start,
                end=end,
                code=code,
                before=_in_one_line("\n".join(self._text[first - 1 : last])),
                after=_in_one_line(head + code + tail),
            )
        )


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _only_raises(block: cst.BaseSuite) -> bool:
    one = matchers.SimpleStatementLine(body=[matchers.Raise()])
    return matchers.matches(block, matchers.IndentedBlock(body=[one]))


def _is_text(node: cst.CSTNode) -> bool:
    """Whether a string is for people, or no string that a program reads."""
    return isinstance(node, cst.SimpleString) and " " in node.value


def _is_documentation(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Expr) and isinstance(
        node.value, cst.SimpleString | cst.ConcatenatedString | cst.Ellipsis
    )


def _is_type_checking(node: cst.CSTNode) -> bool:
    return matchers.matches(node, matchers.If(test=matchers.Name("TYPE_CHECKING")))


def _is_dunder(node: cst.CSTNode) -> bool:
    """``__all__`` and ``__slots__``: names of names."""
    target = matchers.AssignTarget(target=matchers.Name("__all__") | matchers.Name("__slots__"))
    return matchers.matches(node, matchers.Assign(targets=[target]))
