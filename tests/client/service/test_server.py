"""The service on a real socket: a hundred streams, slow clients, and what it listens on."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from typing import Any

import httpx2
import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as sync_connect

from sottovoce.client.service.server import open_socket
from sottovoce.shared.errors import SettingError


async def stream(port: int, token: str, samples: np.ndarray) -> list[str]:
    """Stream sound; the types of messages, or the status of a refusal."""
    protocols = ["sottovoce.v1", f"token.{token}"]
    try:
        async with connect(
            f"ws://127.0.0.1:{port}/v1/stream", subprotocols=protocols, open_timeout=60
        ) as channel:
            for frame in np.array_split(samples, 10):
                await channel.send(frame.tobytes())
            await channel.send("stop")
            return [json.loads(message)["type"] async for message in channel]
    except InvalidStatus as refused:
        return [str(refused.response.status_code)]


def test_a_hundred_streams_are_served_or_refused(make_service: Any, voice: np.ndarray) -> None:
    service = make_service("recognise", max_streams=6)

    async def crowd(port: int) -> list[list[str]]:
        token = service.tokens["recognise"]
        return await asyncio.gather(*(stream(port, token, voice) for _ in range(100)))

    with service.running() as port:
        said = asyncio.run(crowd(port))
        status = httpx2.get(f"http://127.0.0.1:{port}/v1/status", headers=service.headers())

    assert len(said) == 100
    served = [one for one in said if one[0] == "ready"]
    assert len(served) >= 6
    assert all("result" in one and "problem" not in one for one in served)
    assert all(one == ["503"] for one in said if one not in served)
    assert status.json()["open_streams"] == 0


def test_slow_and_broken_clients_are_let_go_and_streams_are_not(make_service: Any) -> None:
    service = make_service("recognise", header_timeout_s=0.2, body_timeout_s=0.2)
    head = b"POST /v1/session HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 10\r\n\r\n{"
    protocols = ["sottovoce.v1", f"token.{service.tokens['recognise']}"]
    with (
        service.running() as port,
        sync_connect(f"ws://127.0.0.1:{port}/v1/stream", subprotocols=protocols) as stream,
    ):
        began = time.monotonic()
        for sent in (b"GET /v1/st", head % port, b"\x16\x03\x01\x02\x00"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(sent)
                answer = b"".join(iter(lambda: client.recv(4_096), b""))
            assert (b"408" in answer) == (b"POST" in sent)
        assert 0.2 < time.monotonic() - began < 9, "none of them was waited for"
        stream.send("stop")
        assert [json.loads(message)["type"] for message in stream] == ["ready"]
        assert httpx2.get(f"http://127.0.0.1:{port}/v1/openapi.json").status_code == 200


def test_apps_that_go_away_leave_no_traceback(
    make_service: Any, voice: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service("recognise")
    token = service.tokens["recognise"]
    protocols = ["sottovoce.v1", f"token.{token}"]
    head = (
        "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 9\r\n"
        "Content-Type: audio/wav\r\nAuthorization: Bearer {}\r\n\r\nRIFF"
    )
    with service.running() as port:
        logging.getLogger("uvicorn.error").addHandler(caplog.handler)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(head.format(port, token).encode())
        with sync_connect(
            f"ws://127.0.0.1:{port}/v1/stream", subprotocols=protocols, close_timeout=0.1
        ) as channel:
            channel.send(voice.tobytes())
            channel.socket.shutdown(socket.SHUT_RDWR)
        status = httpx2.get(f"http://127.0.0.1:{port}/v1/status", headers=service.headers())

    assert status.status_code == 200
    assert [one.getMessage() for one in caplog.records if one.exc_info] == []


def test_what_a_stream_cannot_take_waits_with_the_app(make_service: Any) -> None:
    """Backpressure: while the device is busy, what is read of a stream is bounded."""
    service = make_service("recognise", max_backlog_s=0.5)
    busy = threading.Event()
    read: list[int] = []

    async def flood(port: int) -> None:
        held = asyncio.create_task(service.session.run_on_device(lambda: busy.wait(30)))
        protocols = ["sottovoce.v1", f"token.{service.tokens['recognise']}"]
        address = f"ws://127.0.0.1:{port}/v1/stream"
        async with connect(address, subprotocols=protocols, close_timeout=0.1) as channel:
            frame = np.zeros(16_000, dtype="<f4").tobytes()
            with contextlib.suppress(TimeoutError, ConnectionClosed):
                for _ in range(400):
                    await asyncio.wait_for(channel.send(frame), 0.3)
                    read.append(1)
            busy.set()
        await held

    with service.running() as port:
        asyncio.run(flood(port))

    assert len(read) < 200, "the app was made to wait"


@pytest.mark.parametrize("host", ["::", "192.168.0.1", "", "example.org"])
def test_it_listens_on_loopback_alone(host: str) -> None:
    with pytest.raises(SettingError, match="loopback alone"):
        open_socket(host, 0)


def test_a_taken_port_is_a_mistake_with_a_way_out() -> None:
    with open_socket("localhost", 0) as taken:
        taken.listen()
        with pytest.raises(SettingError, match="--port"):
            open_socket("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(SettingError, match="--port"):
        open_socket("127.0.0.1", 99_999)
