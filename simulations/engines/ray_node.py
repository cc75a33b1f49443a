"""Test of a Ray node's folder and code; imports little, since it runs first on each node."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Final

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import StorageError

_LIBRARIES: Final = ("torch", "flwr", "opacus", "numpy")


def probe_node(folder: str, token: str, node_id: str) -> tuple[str, dict[str, str]]:
    """Copy a file of the driver's; returns the error, if any, and the versions here.

    Args:
        folder: The folder that all nodes share.
        token: The file in it that the driver wrote.
        node_id: What the copy's name ends in.
    """
    shared = Path(folder)
    try:
        replace_text(shared / f"{token}-{node_id}", (shared / token).read_text())
    except StorageError as error:
        return str(error), {}
    except OSError as error:
        return error.strerror or str(error), {}
    return "", code_versions()


def code_versions() -> dict[str, str]:
    """Collect the versions that must be equal on every node: device code and libraries.

    Example:
        >>> sorted(code_versions())
        ['flwr', 'numpy', 'opacus', 'sottovoce', 'torch']
    """
    from sottovoce import client, shared

    digest = hashlib.sha256()
    for room in (shared, client):
        for root in map(Path, room.__path__):
            for path in sorted(root.rglob("*.py")):
                # The zero byte keeps names and contents apart: no two trees give the same stream.
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    found = {name: metadata.version(name) for name in _LIBRARIES}
    return {"sottovoce": digest.hexdigest()[:12], **found}
