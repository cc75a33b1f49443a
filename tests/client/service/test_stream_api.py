"""Streams: recognised window by window, bounded, and ended with a reason."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

Service = Any
URL = "ws://127.0.0.1:8765/v1/stream"


def connect(service: Service, query: str = "?rate=16000", who: str = "recognise") -> Any:
    protocols = ["sottovoce.v1", f"token.{service.tokens[who]}"]
    return service.client.websocket_connect(f"{URL}{query}", subprotocols=protocols)


def receive_all(socket: Any) -> list[dict[str, Any]]:
    """Messages up to the end of the stream; the last says why it ended."""
    found = []
    while True:
        try:
            found.append(json.loads(socket.receive_text()))
        except WebSocketDisconnect as end:
            return [*found, {"type": "closed", "code": end.code}]


def test_a_stream_is_recognised_window_by_window(service: Service, voice: np.ndarray) -> None:
    with connect(service) as socket:
        assert socket.accepted_subprotocol == "sottovoce.v1"
        assert json.loads(socket.receive_text())["type"] == "ready"
        for frame in np.array_split(voice, 20):
            socket.send_bytes(frame.tobytes())
        socket.send_text("stop")
        *results, end = receive_all(socket)

    assert end == {"type": "closed", "code": 1000}
    assert results
    assert results[-1]["end_s"] == pytest.approx(2.0, abs=0.04)
    assert set(results[-1]["probabilities"]) <= set(service.session.labels)
    assert results[-1]["emotion"] in {None, *service.session.labels}
    answer = results[-1]["answer"]
    assert set(answer["probabilities"]) == set(service.session.labels)
    assert service.session.moments.find(answer["moment"]) is not None
    assert service.session.open_streams == 0


def test_frames_of_whole_numbers_say_the_same(service: Service, voice: np.ndarray) -> None:
    said = []
    for name, data in (("float32", voice), ("int16", (voice * 32_767).astype("<i2"))):
        with connect(service, f"?rate=16000&format={name}") as socket:
            socket.send_bytes(data.tobytes())
            socket.send_text("stop")
            said.append(receive_all(socket)[1:-1])

    assert [one["end_s"] for one in said[0]] == [one["end_s"] for one in said[1]]
    first, second = (one[-1]["answer"]["probabilities"] for one in said)
    assert first == pytest.approx(second, abs=0.05)


@pytest.mark.parametrize(
    ("query", "who", "headers", "status"),
    [
        ("", "personalise", {}, 403),
        ("", "", {}, 401),
        ("", "recognise", {"Origin": "https://evil.example"}, 403),
        ("", "recognise", {"Host": "evil.example:8765"}, 421),
        ("?rate=1", "recognise", {}, 422),
        ("?format=mp3", "recognise", {}, 422),
    ],
)
def test_a_stream_is_refused_before_it_is_one(
    shared_service: Service, query: str, who: str, headers: dict[str, str], status: int
) -> None:
    protocols = [f"token.{shared_service.tokens[who]}"] if who else []

    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        shared_service.client.websocket_connect(
            f"{URL}{query}", subprotocols=protocols, headers=headers
        ),
    ):
        pass

    assert refused.value.status_code == status
    assert refused.value.json()["status"] == status


def test_the_header_opens_a_stream_too(shared_service: Service) -> None:
    headers = shared_service.headers("recognise")
    with shared_service.client.websocket_connect(URL, headers=headers) as socket:
        assert json.loads(socket.receive_text())["rate"] == 16_000


@pytest.mark.parametrize(
    ("send", "kind", "code"),
    [
        (lambda socket: socket.send_bytes(b"123"), "unusable-frame", 1008),
        (lambda socket: socket.send_text("go"), "unusable-frame", 1008),
        (lambda socket: socket.send_bytes(b"\0" * 5_000), "too-large", 1008),
        (lambda socket: None, "too-slow", 1013),
    ],
)
def test_a_stream_that_cannot_go_on_says_why(
    make_service: Any, send: Any, kind: str, code: int
) -> None:
    service = make_service("recognise", max_frame_bytes=4_000, idle_timeout_s=0.2)
    with connect(service) as socket:
        send(socket)
        _, problem, end = receive_all(socket)

    assert problem["problem"]["type"] == f"urn:sottovoce:problem:{kind}"
    assert end["code"] == code


def test_withdrawn_consent_ends_an_open_stream(service: Service, voice: np.ndarray) -> None:
    with connect(service) as socket:
        socket.receive_text()
        service.session.withdraw_consent("recognise")
        socket.send_bytes(voice.tobytes())
        problem, end = receive_all(socket)

    assert problem["problem"]["type"] == "urn:sottovoce:problem:consent-required"
    assert end["code"] == 1008


def test_streams_beyond_the_limit_are_told_to_wait(make_service: Any) -> None:
    service = make_service("recognise", max_streams=1)
    with connect(service) as socket:
        socket.receive_text()
        with pytest.raises(WebSocketDenialResponse) as refused, connect(service):
            pass

    assert refused.value.status_code == 503
    assert "retry-after" in refused.value.headers
    with connect(service) as socket:
        assert json.loads(socket.receive_text())["type"] == "ready"


@settings(max_examples=25)
@given(
    st.lists(st.one_of(st.binary(max_size=400), st.text(max_size=8), st.just("stop")), max_size=6)
)
def test_whatever_frames_come_a_stream_ends_in_order(
    shared_service: Service, frames: list[bytes | str]
) -> None:
    with connect(shared_service) as socket:
        for frame in frames:
            if isinstance(frame, bytes):
                socket.send_bytes(frame)
            else:
                socket.send_text(frame)
        socket.send_text("stop")
        *said, end = receive_all(socket)

    assert {one["type"] for one in said} <= {"ready", "result", "problem"}
    assert end["code"] in (1000, 1008)
    assert shared_service.session.open_streams == 0
