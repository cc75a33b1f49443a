"""Static files of the owner's page, read once when the service starts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

FOLDER: Final = Path(__file__).resolve().parent / "static"
"""Where they lie, in a checkout and in a wheel."""

# By name and not by the system's table, which on some machines calls JavaScript plain text.
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFile:
    """One file of the page.

    Attributes:
        content: Its bytes.
        media_type: What browsers take it for.
        tag: By which a browser asks whether it has changed.
    """

    content: bytes
    media_type: str
    tag: str


def load_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """Load all files of the page, by the path that asks for each.

    Args:
        folder: Where they lie; hidden files are left out.

    Example:
        >>> load_page()["/"].media_type
        'text/html; charset=utf-8'
    """
    files = {
        f"/{path.relative_to(folder).as_posix()}": PageFile(
            content=(content := path.read_bytes()),
            media_type=_TYPES[path.suffix],
            tag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        )
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TYPES and not path.name.startswith(".")
    }
    return files | {"/": files["/index.html"]}


def build_router() -> APIRouter:
    """Build the routes of the page: one a file, so that no path leads out of the folder."""
    router = APIRouter(include_in_schema=False)
    for path, file in load_page().items():
        router.add_api_route(path, _answer_with(file), methods=["GET", "HEAD"])
    return router


def _answer_with(file: PageFile) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        # Asked each time: a page of an older release must not talk to a newer service.
        headers = {"Cache-Control": "no-cache", "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return answer
