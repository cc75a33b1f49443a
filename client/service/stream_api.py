"""Sound as it is spoken, over a WebSocket: binary frames in, one JSON message a window out.

A stream is opened at ``/v1/stream?rate=48000&format=float32`` with the subprotocols
``sottovoce.v1`` and ``token.TOKEN``: browsers can send no header, and what stands in an address
ends up in logs. Apps that can may send the ``Authorization`` header instead. The text ``stop`` ends
a stream once all that was sent is looked at. A stream that cannot go on ends with a problem as its
last message.
"""

import asyncio
from contextlib import suppress
from typing import Annotated, Final, Literal

import numpy as np
from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect

from sottovoce.client.device.consent import Purpose
from sottovoce.client.service.access import Access, Caller
from sottovoce.client.service.app_tokens import Scope
from sottovoce.client.service.device_session import DeviceSession
from sottovoce.client.service.live_streams import (
    SETTINGS,
    LiveResult,
    LiveStream,
    decode_frame,
)
from sottovoce.client.service.problems import ProblemError, convert_error
from sottovoce.client.service.schemas import StreamReady, StreamResult
from sottovoce.shared.audio.signal import Samples
from sottovoce.shared.errors import SottovoceError

PROTOCOL: Final = "sottovoce.v1"
"""Subprotocol of a stream; a later one that breaks apps has another number."""

_TOKEN_PREFIX: Final = "token."  # noqa: S105  (what stands before one)
_SAMPLE_BYTES: Final = {"float32": 4, "int16": 2}
_NORMAL, _POLICY, _TRY_LATER, _FAILED = 1000, 1008, 1013, 1011
_QUEUED_FRAMES: Final = 256
_PIECE_S: Final = 1.0  # what is looked at in one go, so that streams share the device

router = APIRouter(prefix="/v1")


@router.websocket("/stream")
async def stream_sound(
    socket: WebSocket,
    rate: Annotated[int, Query(ge=8_000, le=192_000)] = 16_000,
    format: Annotated[Literal["float32", "int16"], Query()] = "float32",  # noqa: A002
) -> None:
    """Recognise a stream of sound, window by window; scope recognise."""
    session: DeviceSession = socket.app.state.session
    caller = await asyncio.to_thread(_identify, socket)
    caller.require_scope(Scope.RECOGNISE)
    if session.open_streams >= session.limits.max_streams:
        raise ProblemError(
            503,
            "too-many-streams",
            f"{session.open_streams} streams are open",
            limit=session.limits.max_streams,
            retry_after_s=5.0,
            way_out="close one, or wait until one is closed",
        )
    # No await lies between the question and the count: two streams cannot take one place.
    session.open_streams += 1
    try:
        await socket.accept(PROTOCOL if PROTOCOL in _offered_protocols(socket) else None)
        await _Exchange(socket, session, rate=rate, sample_format=format).serve()
    finally:
        session.open_streams -= 1


def _identify(socket: WebSocket) -> Caller:
    """Identify who opens a stream, by a subprotocol or by the header."""
    access: Access = socket.app.state.access
    named = (one for one in _offered_protocols(socket) if one.startswith(_TOKEN_PREFIX))
    token = next(named, "").removeprefix(_TOKEN_PREFIX)
    scheme, _, value = socket.headers.get("authorization", "").partition(" ")
    if not token and scheme.lower() == "bearer":
        token = value.strip()
    return access.identify(token)


def _offered_protocols(socket: WebSocket) -> list[str]:
    """List the subprotocols that a client offers; some servers leave the header's commas in."""
    offered = ",".join(socket.scope.get("subprotocols", []))
    return [one.strip() for one in offered.split(",")]


class _Exchange:
    """One open stream: what comes in waits in a bounded queue, what goes out tells how long."""

    def __init__(
        self, socket: WebSocket, session: DeviceSession, *, rate: int, sample_format: str
    ) -> None:
        self._socket, self._session = socket, session
        self._rate, self._format = rate, sample_format
        self._queue: asyncio.Queue[Samples | None] = asyncio.Queue(_QUEUED_FRAMES)
        self._waiting = 0  # samples
        self._room = asyncio.Event()

    async def serve(self) -> None:
        """Serve until one side ends it."""
        reader = asyncio.create_task(self._read())
        try:
            await self._work(reader)
        except ProblemError as problem:
            await self._end(problem)
        except SottovoceError as error:
            await self._end(convert_error(error))
        except WebSocketDisconnect:
            pass
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, ProblemError):
                await reader

    async def _work(self, reader: "asyncio.Task[None]") -> None:
        """Look at what waits, piece by piece, and tell what was found."""
        session = self._session
        stream = await session.run_on_device(self._open, waits=True)
        await self._socket.send_text(
            StreamReady(
                rate=self._rate,
                format=self._format,
                window_s=SETTINGS.window_s,
                stride_s=SETTINGS.stride_s,
                max_frame_bytes=session.limits.max_frame_bytes,
            ).model_dump_json()
        )
        while (samples := await self._take(reader)) is not None:
            results = await session.run_on_device(
                lambda piece=samples: self._push(stream, piece),  # type: ignore[misc]
                waits=True,
            )
            await self._tell(results)
        await self._tell(await session.run_on_device(lambda: self._close(stream), waits=True))
        await self._socket.close(_NORMAL)

    async def _tell(self, results: list[StreamResult]) -> None:
        for result in results:
            await self._socket.send_text(result.model_dump_json())

    async def _read(self) -> None:
        """Read frames into the queue; where it is full, nothing more is read from the app."""
        limits = self._session.limits
        while True:
            try:
                message = await asyncio.wait_for(self._socket.receive(), limits.idle_timeout_s)
            except TimeoutError:
                raise ProblemError(
                    408,
                    "too-slow",
                    f"nothing came for {limits.idle_timeout_s:g} s",
                    limit=limits.idle_timeout_s,
                    way_out="send silence while nobody speaks, or open the stream again",
                ) from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or _NORMAL)
            if message.get("text") is not None:
                if message["text"] != "stop":
                    raise _unusable_frame("a text that is not stop", "binary frames, or stop")
                await self._queue.put(None)
                return
            samples = self._decode(message.get("bytes") or b"")
            self._waiting += len(samples)
            await self._queue.put(samples)
            # Backpressure: while too much waits, the system's own buffers fill, and the app waits.
            while self._waiting > limits.max_backlog_s * self._rate:
                self._room.clear()
                await self._room.wait()

    def _decode(self, data: bytes) -> Samples:
        limits, size = self._session.limits, _SAMPLE_BYTES[self._format]
        if len(data) > limits.max_frame_bytes:
            raise ProblemError(
                413,
                "too-large",
                f"a frame has {len(data):,} bytes; {limits.max_frame_bytes:,} may be",
                value=len(data),
                limit=limits.max_frame_bytes,
                way_out="send a tenth of a second in a frame",
            )
        if len(data) % size:
            raise _unusable_frame(f"{len(data)} bytes", f"whole samples of {size} bytes")
        return decode_frame(data, self._format)

    async def _take(self, reader: "asyncio.Task[None]") -> Samples | None:
        """Take what waits, up to a second of it; None once all of a stopped stream is taken."""
        getter = asyncio.create_task(self._queue.get())
        await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED)
        if not getter.done():
            getter.cancel()
            reader.result()  # raises what ended the reading; a stop has left its mark in the queue
            return None
        taken: list[Samples] = []
        found = getter.result()
        while found is not None:
            taken.append(found)
            if self._queue.empty() or sum(map(len, taken)) >= _PIECE_S * self._rate:
                break
            found = self._queue.get_nowait()
        if not taken:
            return None
        if found is None:
            self._queue.put_nowait(None)  # found again, once what came before is looked at
        samples: Samples = np.concatenate(taken)
        self._waiting -= len(samples)
        self._room.set()
        return samples

    def _open(self) -> LiveStream:
        session = self._session
        session.user_device.consent.require(Purpose.RECOGNISE)
        return LiveStream(session.recognise, rate=self._rate)

    def _push(self, stream: LiveStream, samples: Samples) -> list[StreamResult]:
        # Asked for every piece: a withdrawal counts at once, for streams that are open, too.
        self._session.user_device.consent.require(Purpose.RECOGNISE)
        return [self._describe(found) for found in stream.push(samples)]

    def _close(self, stream: LiveStream) -> list[StreamResult]:
        self._session.user_device.consent.require(Purpose.RECOGNISE)
        return [self._describe(found) for found in stream.close()]

    def _describe(self, found: LiveResult) -> StreamResult:
        said = found.stream
        return StreamResult(
            start_s=said.start_s,
            end_s=said.end_s,
            emotion=said.emotion,
            probabilities=dict(said.probabilities),
            dropped=said.dropped,
            backlog_s=self._waiting / self._rate,
            answer=self._session.build_answer(found.recognised),
        )

    async def _end(self, problem: ProblemError) -> None:
        """Tell why the stream ends, and end it."""
        code = {403: _POLICY, 408: _TRY_LATER, 503: _TRY_LATER, 500: _FAILED}
        with suppress(WebSocketDisconnect, RuntimeError):  # whoever is gone need not be told
            await self._socket.send_json(
                {"type": "problem", "problem": problem.problem.model_dump(exclude_none=True)}
            )
            await self._socket.close(code.get(problem.status_code, _POLICY))


def _unusable_frame(value: str, limit: str) -> ProblemError:
    return ProblemError(
        422,
        "unusable-frame",
        f"a message of the stream is {value}; it must be {limit}",
        value=value,
        limit=limit,
        way_out="send samples as the stream was opened for",
    )
