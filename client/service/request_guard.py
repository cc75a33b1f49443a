"""The guard before the service: what it refuses reaches neither the API nor the device.

A page of another site can make a browser send requests to loopback. It cannot read the answers,
because no answer names another origin (CORS), but the request alone could do harm; and a name that
its owner points at 127.0.0.1 (DNS rebinding) would make the service that site's own. So a request
must name this machine as its host, and come from no other origin. Bodies are bounded in size and
in time before anybody looks at them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from sottovoce.client.service.problems import ProblemError
from sottovoce.client.service.service_limits import ServiceLimits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that a request may call it by."""

RECORDING_PATHS: Final = ("/v1/predict", "/v1/recordings", "/v1/segments")
"""Where recordings are uploaded, which are larger than anything else."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "media-src 'self' blob:; connect-src 'self'{}; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class RequestGuard:
    """Refuses foreign hosts and origins, and bodies that are too large or too slow.

    Args:
        app: What is guarded.
        port: Where the service listens.
        limits: Of the service.
    """

    def __init__(self, app: AsgiApp, *, port: int, limits: ServiceLimits) -> None:
        self._app: Final = app
        self._limits: Final = limits
        self._hosts: Final = frozenset(f"{host}:{port}" for host in LOOPBACK_HOSTS)
        self._origins: Final = frozenset(f"http://{host}" for host in self._hosts)
        # Safari does not take a WebSocket of the page's own host for 'self'.
        sockets = "".join(f" ws://{host}" for host in sorted(self._hosts) if "[" not in host)
        self._policy: Final = _POLICY.format(sockets)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check_sender(scope)
            if scope["type"] == "http":
                receive = self._bound_body(scope, receive)
                send = self._add_headers(send)
            else:
                send = _omit_length(send)
            await self._app(scope, receive, send)
        except ProblemError as problem:
            await _refuse(problem, scope, receive, send)

    def _check_sender(self, scope: Scope) -> None:
        """Refuse a host that is not this machine, and an origin that is not this service."""
        headers = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if host not in self._hosts:
            raise ProblemError(
                421,
                "foreign-host",
                f"the request is for the host {host!r}, which is not this service",
                value=host,
                limit=", ".join(sorted(self._hosts)),
                way_out="call the service by one of these names",
            )
        origins = {value.decode("latin-1").lower() for name, value in headers if name == b"origin"}
        sites = {value for name, value in headers if name == b"sec-fetch-site"}
        # A link that is followed to the page is no danger: the page is the same for everybody.
        followed = scope["type"] == "http" and not scope["path"].startswith("/v1/")
        if origins - self._origins or (sites & {b"cross-site", b"same-site"} and not followed):
            raise ProblemError(
                403,
                "foreign-origin",
                "the request comes from a page of another origin",
                value=", ".join(sorted(origins)) or "cross-site",
                limit=", ".join(sorted(self._origins)),
                way_out="ask from an app, or from the page of the service itself",
            )

    def _bound_body(self, scope: Scope, receive: Receive) -> Receive:
        """Bound the size of a body, and the time that it takes."""
        limits = self._limits
        is_recording = scope["path"] in RECORDING_PATHS
        most = limits.max_recording_bytes if is_recording else limits.max_json_bytes
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and int(lengths[0]) > most:  # digits: the parser of HTTP has seen to that
            raise _too_large(int(lengths[0]), most)
        read, complete, ends_at = 0, False, time.monotonic() + limits.body_timeout_s

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:  # what comes now is the end of the connection, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), ends_at - time.monotonic())
            except TimeoutError:
                raise ProblemError(
                    408,
                    "too-slow",
                    f"the body took longer than {limits.body_timeout_s:g} s",
                    limit=limits.body_timeout_s,
                    way_out="send it at once",
                ) from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > most:
                raise _too_large(read, most)
            return message

        return bounded

    def _add_headers(self, send: Send) -> Send:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = _HEADERS | {"Content-Security-Policy": self._policy}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in own.items()),
                ]
            await send(message)

        return with_headers


def _omit_length(send: Send) -> Send:
    """Leave the length of a refusal of a WebSocket to the server, which would state it twice."""

    async def without_length(message: Message) -> None:
        if message["type"] == "websocket.http.response.start":
            headers = [one for one in message["headers"] if one[0] != b"content-length"]
            message["headers"] = headers
        await send(message)

    return without_length


def _too_large(size: int, most: int) -> ProblemError:
    return ProblemError(
        413,
        "too-large",
        f"the body has {size:,} bytes or more; {most:,} may be",
        value=size,
        limit=most,
        way_out="send a shorter recording, or one in FLAC or Ogg",
    )


async def _refuse(problem: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the problem; a WebSocket is refused by a response too, before it is one."""
    await problem.build_response()(scope, receive, send)
