"""The service itself: put together, and listening on loopback until it is stopped."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from sottovoce import __version__
from sottovoce.client.service import http_api, owner_api, stream_api
from sottovoce.client.service.access import Access
from sottovoce.client.service.device_session import DeviceSession
from sottovoce.client.service.page import page_files
from sottovoce.client.service.problems import Problem, add_problem_handlers
from sottovoce.client.service.request_guard import LOOPBACK_HOSTS, AsgiApp, RequestGuard
from sottovoce.shared.errors import SettingError

_BACKLOG: Final = 128
_SWEEP_S: Final = 10.0
_STOP_S: Final = 3
_ABOUT: Final = (
    "The local service of one Sottovoce device. It listens on loopback alone. Errors are problem "
    "details (RFC 9457). Sound is streamed at /v1/stream, a WebSocket, which OpenAPI cannot "
    "describe: see the guide."
)


def build_app(session: DeviceSession, access: Access, *, port: int) -> AsgiApp:
    """Build the service, guarded; an ASGI application.

    Args:
        session: The device that it works for.
        access: Knows callers.
        port: Where it listens, which its host and origin name.
    """
    app = FastAPI(
        title="Sottovoce device",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # its page would load scripts from another machine
        redoc_url=None,
        openapi_url=None,
        lifespan=_sweep_moments,
    )
    app.state.session, app.state.access = session, access
    add_problem_handlers(app)
    for one in (http_api, owner_api, stream_api):
        app.include_router(one.router)
    app.include_router(page_files.build_router())

    @app.get("/v1/openapi.json", include_in_schema=False)
    def describe_api() -> JSONResponse:
        return JSONResponse(_describe(app))

    return RequestGuard(app, port=port, limits=session.limits)


def _describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schema of problems."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        # FastAPI describes faults as it would answer them; here all answers are problems.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


@asynccontextmanager
async def _sweep_moments(app: FastAPI) -> AsyncIterator[None]:
    """Let go of old moments while the service runs, so that none stays because nobody asks."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            app.state.session.moments.drop_old()

    sweeper = asyncio.create_task(sweep())
    try:
        yield
    finally:
        sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await sweeper
        app.state.session.close()


def require_loopback(host: str) -> None:
    """Refuse to listen where other machines could ask.

    Raises:
        SettingError: The host is not loopback.

    Example:
        >>> require_loopback("127.0.0.1")
    """
    if host not in (*LOOPBACK_HOSTS, "::1"):
        raise SettingError(
            f"--host is {host!r}; the service listens on loopback alone, as one of "
            f"{', '.join(LOOPBACK_HOSTS)}: who could reach it from elsewhere could hear its user"
        )


def open_socket(host: str, port: int) -> socket.socket:
    """Open the socket that the service listens on.

    Args:
        host: A loopback address.
        port: 0 takes one that is free.

    Raises:
        SettingError: Another host, or a port that is taken or cannot be.
    """
    require_loopback(host)
    host = "::1" if host == "[::1]" else host
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # elsewhere it would let another program take the port, too
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(_BACKLOG)  # from here on whoever comes waits, and is not turned away
    except (OSError, OverflowError) as error:
        found.close()
        raise SettingError(
            f"port {port} cannot be listened on ({error}); choose another one with --port, or 0 "
            "for any that is free"
        ) from error
    return found


def run_service(session: DeviceSession, access: Access, listening: socket.socket) -> None:
    """Serve until the process is told to stop; ends the session.

    Args:
        session: The device that it works for.
        access: Knows callers.
        listening: From :func:`open_socket`.
    """
    port = listening.getsockname()[1]
    build_server(session, access, port=port).run(sockets=[listening])


def build_server(session: DeviceSession, access: Access, *, port: int) -> uvicorn.Server:
    """Build the server of a service; arguments as for :func:`build_app`."""
    limits = session.limits

    class BoundedProtocol(_BoundedProtocol):
        header_timeout_s = limits.header_timeout_s

    config = uvicorn.Config(
        build_app(session, access, port=port),
        loop="asyncio",  # whatever else is installed: others raise where a client is gone
        http=BoundedProtocol,
        ws="websockets-sansio",  # the one that stops reading while what came is not looked at
        ws_max_size=2 * limits.max_frame_bytes,
        ws_per_message_deflate=False,  # sound hardly shrinks, and little data would unfold to much
        log_level="warning",
        access_log=False,  # who asked what, and when, is nobody's business
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_STOP_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_no_refusal)
    return uvicorn.Server(config)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Whether a record is more than a stream that was refused, which uvicorn takes for a fault."""
    return "without completing handshake" not in record.getMessage()


class _BoundedProtocol(H11Protocol):
    """Closes a connection whose headers do not come; bodies are bounded by the guard."""

    header_timeout_s = 10.0
    _header_timer: asyncio.TimerHandle | None = None
    _is_stream = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        # The connection of a stream is another protocol's from its handshake on.
        elif not (self._is_stream or self._header_timer or self.transport.is_closing()):
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:  # noqa: ANN401  (h11's)
        self._is_stream = True
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        self.transport.close()
