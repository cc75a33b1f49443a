"""Measurements of the code: names, examples, comments, parameters, imports, circles.

``python tests/code_measurements.py`` prints them; ``test_code_style.py`` holds their limits.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
ROOMS = ("shared", "client", "server", "simulations", "sottovoce")

DIALECT = frozenset(
    {
        "heard",
        "told",
        "kept",
        "given",
        "place",
        "alike",
        "crowd",
        "coins",
        "coin",
        "price",
        "grain",
        "worth",
        "course",
        "witness",
        "world",
        "worlds",
        "lives",
    }
)
"""Everyday words that once stood for terms of the field, as they would stand in a name."""

DIALECT_TEXT = re.compile(
    r"\b(heard|told|kept|given|places?|alike|crowds?|coins?|price[ds]?|grain|worth|course|witness"
    r"|worlds?|lives|hangs? together|takes? turns)\b",
    re.IGNORECASE,
)
"""The same words in prose, inflected, for headings and entries of the glossary."""

_IMPORTERS = frozenset({"import_module", "__import__"})
"""Functions that import a module by its name."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """A function or class and where it is.

    Attributes:
        file: Path within the repository.
        name: Qualified within its module.
        node: Its syntax tree.
        is_public: Whether neither it nor what it is defined in begins with an underscore.
    """

    file: str
    name: str
    node: Function | ast.ClassDef
    is_public: bool

    @property
    def docstring(self) -> str:
        """Its docstring; empty where there is none."""
        return ast.get_docstring(self.node) or ""

    @property
    def words(self) -> list[str]:
        """The words of its own name, lower case."""
        return split_words(self.node.name)


def split_words(name: str) -> list[str]:
    """The words of an identifier, of either convention, lower case.

    Example:
        >>> split_words("fit_head"), split_words("PrivacyScheme")
        (['fit', 'head'], ['privacy', 'scheme'])
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word.lower() for word in spaced.split("_") if word]


class CodeBase:
    """All modules of the rooms, parsed.

    Args:
        house: The repository.
    """

    def __init__(self, house: Path = HOUSE) -> None:
        files = [file for room in ROOMS for file in sorted((house / room).rglob("*.py"))]
        self.sources: Mapping[str, str] = {
            file.relative_to(house).as_posix(): file.read_text(encoding="utf-8") for file in files
        }
        self.trees = {file: ast.parse(source) for file, source in self.sources.items()}

    @cached_property
    def definitions(self) -> list[Definition]:
        """All functions, methods and classes that are not defined in a function."""
        return [one for file, tree in self.trees.items() for one in _definitions(file, tree)]

    @property
    def public_functions(self) -> list[Definition]:
        """Public functions, methods and properties, but dunder methods."""
        return [
            one
            for one in self.definitions
            if isinstance(one.node, Function) and one.is_public and not _is_dunder(one.node.name)
        ]

    def one_word_share(self) -> float:
        """Share of public functions whose name is one word."""
        names = self.public_functions
        return sum(len(one.words) == 1 for one in names) / len(names)

    def example_share(self) -> float:
        """Share of public functions with an example that doctest runs."""
        names = self.public_functions
        return sum(">>>" in one.docstring for one in names) / len(names)

    def comment_ratio(self) -> float:
        """Comments a line of code; docstrings and blank lines count as neither."""
        comments = code = 0
        for source in self.sources.values():
            found = _count_lines(source)
            comments, code = comments + found[0], code + found[1]
        return comments / code

    def long_signatures(self, limit: int = 7) -> list[str]:
        """Functions with more parameters than the limit, ``self`` and ``cls`` left out."""
        return [
            f"{one.file}: {one.name} ({count})"
            for one in self.definitions
            if isinstance(one.node, Function) and (count := _count_parameters(one.node)) > limit
        ]

    def imports_of(self, file: str) -> set[str]:
        """What a module imports from this project: modules, as paths within the repository."""
        found = set()
        for node in ast.walk(self.trees[file]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sottovoce"):
                for alias in node.names:
                    found.add(self._resolve(f"{node.module}.{alias.name}"))
            elif isinstance(node, ast.Import):
                found |= {self._resolve(alias.name) for alias in node.names}
            elif isinstance(node, ast.Call) and _called_name(node) in _IMPORTERS:
                found |= {self._resolve(name) for name in _constants(node.args[:1])}
        return {one for one in found if one and one != file}

    def many_imports(self, limit: int = 15) -> list[str]:
        """Modules that import more of the project's modules than the limit."""
        counts = {file: len(self.imports_of(file)) for file in self.trees}
        return [f"{file} ({count})" for file, count in counts.items() if count > limit]

    def import_circles(self) -> list[list[str]]:
        """Groups of modules that import one another, inside functions and for types too."""
        graph = {file: self.imports_of(file) for file in self.trees}
        return [sorted(group) for group in _components(graph) if len(group) > 1]

    def dialect_fields(self) -> Iterator[str]:
        """Fields of public classes and parameters of public functions in the dialect."""
        for one in self.definitions:
            if not one.is_public:
                continue
            names: list[str] = []
            if isinstance(one.node, ast.ClassDef):
                names = [
                    part.target.id
                    for part in one.node.body
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
                ]
            else:
                arguments = one.node.args
                names = [part.arg for part in (*arguments.args, *arguments.kwonlyargs)]
            for name in names:
                if not name.startswith("_") and DIALECT & set(split_words(name)):
                    yield f"{one.file}: {one.name}: {name}"

    def crowded_folders(self, limit: int = 14) -> list[str]:
        """Folders with more modules than the limit; ``__init__`` and ``__main__`` are none."""
        counts: dict[str, int] = {}
        for file in self.trees:
            folder, _, name = file.rpartition("/")
            counts[folder] = counts.get(folder, 0) + (not name.startswith("__"))
        return [f"{folder} ({count})" for folder, count in counts.items() if count > limit]

    def _resolve(self, dotted: str) -> str | None:
        """The file of a module, or of the module that a name is defined in."""
        parts = dotted.split(".")
        if parts[0] != "sottovoce":
            return None
        for end in range(len(parts), 1, -1):
            inner = parts[1:end]
            base = "/".join(inner if inner[0] in ROOMS else ["sottovoce", *inner])
            for file in (f"{base}.py", f"{base}/__init__.py"):
                if file in self.trees:
                    return file
        return None


def _definitions(file: str, tree: ast.Module) -> Iterator[Definition]:
    def visit(body: list[ast.stmt], prefix: str, public: bool) -> Iterator[Definition]:
        for node in body:
            if isinstance(node, Function | ast.ClassDef):
                is_public = public and (not node.name.startswith("_") or _is_dunder(node.name))
                name = prefix + node.name
                yield Definition(file=file, name=name, node=node, is_public=is_public)
                if isinstance(node, ast.ClassDef):
                    yield from visit(node.body, f"{name}.", is_public)

    yield from visit(tree.body, "", True)


def _called_name(call: ast.Call) -> str:
    called = call.func
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _constants(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _count_parameters(node: Function) -> int:
    arguments = node.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _count_lines(source: str) -> tuple[int, int]:
    """Comments, and lines of code without docstrings."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    comments, code = 0, set()
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += not token.string.startswith(("# noqa", "# type:"))
        elif token.type not in skipped:
            code |= set(range(token.start[0], token.end[0] + 1)) - docstrings
    return comments, len(code)


def _components(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Strongly connected components (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            found.append(group)

    for node in graph:
        if node not in index:
            visit(node)
    yield from found


def main() -> None:
    """Print the measurements."""
    code = CodeBase()
    functions = code.public_functions
    print(f"public functions             {len(functions)}")
    print(f"with a one-word name         {code.one_word_share():.1%}")
    print(f"with an example that is run  {code.example_share():.1%}")
    print(f"comments a line of code      {code.comment_ratio():.3f}")
    print(f"more than 7 parameters       {code.long_signatures()}")
    print(f"more than 15 imports         {code.many_imports()}")
    print(f"import circles               {code.import_circles()}")
    print(f"crowded folders              {code.crowded_folders()}")
    words = sorted(
        f"{one.file}: {one.name}"
        for one in code.definitions
        if one.is_public and DIALECT & set(one.words)
    )
    print(f"words of the dialect         {[*words, *code.dialect_fields()]}")


if __name__ == "__main__":
    main()
