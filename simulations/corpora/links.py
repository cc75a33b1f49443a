"""Where the files of a corpus lie: linked folders, and paths that a manifest writes.

One rule for links: what the owner laid into a corpus is read or named, never silently skipped.
Where file names are the corpus, the owner's folders are the word, and links to folders are
entered. Where a manifest is the word, it is often a stranger's: what lies outside of the folder,
behind a link too, is read only if the owner allows it.
"""

import os
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora.corpus import Finding, make_finding


@dataclass(kw_only=True, slots=True)
class FolderWalk:
    """All files below a folder, behind links too, each folder once.

    Attributes:
        folder: Where it begins.
        entered: Links to folders that were entered.
        repeated: Links to folders that were read already, or that they lie in.
        dangling: Links that lead nowhere.
        closed: Folders that cannot be opened.
    """

    folder: Path
    entered: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def find_files(self) -> Iterator[Path]:
        """Everything but folders, by path below the folder; links that lead nowhere included.

        Raises:
            CorpusError: The folder itself cannot be read.
        """
        met: set[tuple[int, int]] = set()
        # Folders before links to folders: a link back is then known as one.
        folders, links = deque([self.folder]), deque[Path]()
        while folders or links:
            linked = not folders
            here = (links if linked else folders).popleft()
            name = here.relative_to(self.folder).as_posix()
            try:
                state = here.stat()
                identity = state.st_dev, state.st_ino
                if identity in met:
                    self.repeated.append(name)
                    continue
                met.add(identity)
                entries = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError as error:
                if here == self.folder:
                    raise CorpusError(f"{here} cannot be read: {error.strerror}") from error
                self.closed.append(name)
                continue
            if linked:
                self.entered.append(name)
            for entry in entries:
                path = here / entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and path.is_dir():
                    links.append(path)
                else:
                    if entry.is_symlink() and not path.exists():
                        self.dangling.append(path.relative_to(self.folder).as_posix())
                    yield path

    def findings(self) -> list[Finding]:
        """Report the links that were met, once all files were found."""
        notes = [
            make_finding("linked folders", self.entered, "entered"),
            make_finding("links to folders that were read already", self.repeated, "not entered"),
            make_finding("links that lead nowhere", self.dangling, "left out"),
            make_finding("folders that cannot be opened", self.closed, "left out"),
        ]
        return [note for note in notes if note.count]


@dataclass(kw_only=True, slots=True)
class FolderPaths:
    """Paths that a manifest writes, as files below its folder.

    Attributes:
        folder: The manifest's folder.
    """

    folder: Path
    _real: dict[Path, Path] = field(default_factory=dict)
    _names: dict[Path, dict[str, list[str]]] = field(default_factory=dict)

    def read_path(self, text: str) -> PurePosixPath | None:
        """Read a path relative to the folder; None when it leads out of the folder."""
        # A backslash is a letter of a name on Linux, where a file has that name.
        windows = "\\" in text and not is_existing_file(self.folder / text)
        named = PurePosixPath(PureWindowsPath(text).as_posix() if windows else text)
        if named.is_absolute():
            roots = (self.folder.absolute(), self._resolve(self.folder))
            root = next((r.as_posix() for r in roots if named.is_relative_to(r.as_posix())), None)
            if root is None:
                return None
            named = named.relative_to(root)
        drive = windows and PureWindowsPath(text).drive
        # ".." would read a file outside the corpus, and a Windows drive is no folder here.
        return None if drive or ".." in named.parts or not named.parts else named

    def find_file(self, named: PurePosixPath) -> Path:
        """The file of a path, whose name may be written in another Unicode form or encoding.

        Args:
            named: As :meth:`read_path` gave it.

        Returns:
            The file on disk; where there is none, the path as it is written.
        """
        path = self.folder / named
        if is_existing_file(path) or str(named).isascii():
            return path
        here = self.folder
        for part in named.parts:
            found = self._list_names(here).get(unicodedata.normalize("NFC", part), [])
            if len(found) != 1:
                return path
            here = here / found[0]
        return here

    def leads_outside(self, path: Path) -> bool:
        """Whether a file lies outside the folder, behind a link."""
        try:
            real = self._resolve(path.parent) / path.name
            # Most recordings are no links: their folder decides, and is looked up once.
            real = path.resolve() if path.is_symlink() else real
            return not real.is_relative_to(self._resolve(self.folder))
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long
            return False

    def _resolve(self, folder: Path) -> Path:
        if folder not in self._real:
            self._real[folder] = folder.resolve()
        return self._real[folder]

    def _list_names(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder, by how a manifest may write them."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                there = sorted(path.name for path in folder.iterdir())
            except OSError:
                there = []
            for name in there:
                key = unicodedata.normalize("NFC", readable_name(name))
                names.setdefault(key, []).append(name)
            self._names[folder] = names
        return self._names[folder]


def readable_name(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8 are read as Windows-1252.

    Example:
        >>> import os
        >>> readable_name(os.fsdecode(b"Erkl\xe4rung.wav"))
        'Erklärung.wav'
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        # Latin-1 has a letter for the few bytes for which Windows-1252 has none.
        raw = name.encode(errors="surrogateescape")
        try:
            return raw.decode("cp1252")
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    return name


def is_existing_file(path: Path) -> bool:
    """Tell whether a path leads to a file; False for a path that the system refuses.

    Example:
        >>> is_existing_file(Path("no such recording.wav"))
        False
    """
    return file_size(path) >= 0


def file_size(path: Path | None) -> int:
    """Ask a file's size in bytes; -1 where there is no file that can be asked.

    Example:
        >>> file_size(None)
        -1
    """
    try:
        return path.stat().st_size if path and path.is_file() else -1
    except (OSError, ValueError):  # a name too long, or with a zero byte in it
        return -1
