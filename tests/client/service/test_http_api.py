"""The service over HTTP: who may ask what, what is refused, and what is said then."""

import io
import json
import wave
import zipfile
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from sottovoce.client.device.device import Device
from sottovoce.client.service.app_tokens import AppTokens

Service = Any


def problem(answer: Any) -> tuple[int, str]:
    """Status and kind of a problem; that it is one, whole."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    content = answer.json()
    assert content["status"] == answer.status_code
    assert content["detail"]
    return answer.status_code, content["type"].removeprefix("urn:sottovoce:problem:")


def test_a_recording_is_recognised_corrected_listed_and_forgotten(
    service: Service, wav: bytes
) -> None:
    answer = service.upload("/v1/predict", wav, "recognise").json()
    assert set(answer["probabilities"]) == set(service.session.labels)

    said = {"moment": answer["moment"], "emotion": "angry"}
    name = service.client.post(
        "/v1/corrections", json=said, headers=service.headers("personalise")
    ).json()["name"]

    assert service.session.moments.find(answer["moment"]).shape == (2304,), "no sound is held"
    again = service.upload("/v1/recordings?emotion=angry", wav)
    assert again.json()["name"] == name, "the same recording, by its features or by itself"
    assert service.upload("/v1/predict", wav).json()["own_head"]
    listed = service.client.get("/v1/recordings", headers=service.headers("personalise")).json()
    assert [(one["name"], one["emotion"]) for one in listed["recordings"]] == [(name, "angry")]
    gone = service.client.delete(f"/v1/recordings/{name}", headers=service.headers("personalise"))
    assert (gone.status_code, gone.content) == (204, b"")
    again = service.client.delete(f"/v1/recordings/{name}", headers=service.headers())
    assert problem(again) == (422, "unusable-value")
    assert service.upload("/v1/predict", wav).json()["probabilities"] == answer["probabilities"]


def test_a_long_recording_is_answered_by_utterances(
    shared_service: Service, voice: np.ndarray
) -> None:
    import soundfile

    pause = np.zeros(16_000, dtype=np.float32)
    data = io.BytesIO()
    soundfile.write(data, np.concatenate([voice, pause, voice]), 16_000, format="FLAC")

    answer = shared_service.upload("/v1/segments", data.getvalue(), kind="audio/flac").json()

    found = answer["segments"]
    assert answer["duration_s"] == pytest.approx(5.0)
    assert len(found) >= 2
    ends = [one["end_s"] for one in found]
    assert all(one["start_s"] >= end for one, end in zip(found[1:], ends, strict=False))
    assert all(one["answer"]["moment"] for one in found if one["answer"]["probabilities"])
    silence = shared_service.upload("/v1/segments", silent_wav(), kind="audio/wav").json()
    assert silence["segments"] == []


def silent_wav() -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64_000))
    return data.getvalue()


def test_a_recording_is_enrolled_and_known_from_then_on(service: Service, wav: bytes) -> None:
    made = service.upload("/v1/recordings?neutral=true", wav, "personalise")
    assert made.status_code == 200, made.text

    status = service.client.get("/v1/status", headers=service.headers("contribute")).json()
    assert (status["own_normaliser"], status["recordings"], status["caller"]) == (
        True,
        1,
        "contribute",
    )
    assert problem(service.upload("/v1/recordings?emotion=sadd", wav)) == (422, "unusable-value")


@pytest.mark.parametrize(
    ("who", "method", "path", "kind"),
    [
        ("personalise", "post", "/v1/predict", "scope-missing"),
        ("recognise", "post", "/v1/recordings", "scope-missing"),
        ("recognise", "post", "/v1/corrections", "scope-missing"),
        ("recognise", "get", "/v1/recordings", "scope-missing"),
        ("recognise", "get", "/v1/privacy", "scope-missing"),
        ("recognise", "put", "/v1/consent/contribute", "scope-missing"),
        ("contribute", "put", "/v1/consent/contribute", "owner-only"),
        ("contribute", "get", "/v1/export", "owner-only"),
        ("contribute", "post", "/v1/erasure", "owner-only"),
        ("contribute", "post", "/v1/withdrawal", "owner-only"),
        ("contribute", "get", "/v1/settings", "owner-only"),
        ("contribute", "put", "/v1/settings", "owner-only"),
        ("contribute", "get", "/v1/apps", "owner-only"),
        ("contribute", "delete", "/v1/apps/recognise", "owner-only"),
    ],
)
def test_a_token_opens_no_more_than_its_scopes(
    shared_service: Service, who: str, method: str, path: str, kind: str
) -> None:
    bodies = {
        "/v1/corrections": {"moment": "x", "emotion": "sad"},
        "/v1/consent/contribute": {"allowed": True, "text_version": 1},
        "/v1/erasure": {"user": "ada"},
        "/v1/settings": {},
    }
    body = {"json": bodies[path]} if path in bodies and method != "get" else {}
    answer = shared_service.client.request(
        method, path, headers=shared_service.headers(who), **body
    )
    assert problem(answer) == (403, kind)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (401, "token-missing")),
        ({"Authorization": "Bearer svt_guess"}, (401, "token-unknown")),
        ({"Authorization": "Basic YWRhOmFkYQ=="}, (401, "token-missing")),
        (
            {"Authorization": "Bearer \xe4".encode("latin-1").decode("latin-1")},
            (401, "token-unknown"),
        ),
        ({"Host": "evil.example"}, (421, "foreign-host")),
        ({"Host": "127.0.0.1:1"}, (421, "foreign-host")),
        ({"Host": "127.0.0.1.evil.example:8765"}, (421, "foreign-host")),
        ({"Origin": "https://evil.example"}, (403, "foreign-origin")),
        ({"Origin": "http://127.0.0.1:1"}, (403, "foreign-origin")),
        ({"Origin": "null"}, (403, "foreign-origin")),
        ({"Sec-Fetch-Site": "cross-site"}, (403, "foreign-origin")),
        ({"Sec-Fetch-Site": "same-site"}, (403, "foreign-origin")),
    ],
)
def test_strangers_are_refused(
    shared_service: Service, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    given = (
        headers if "Authorization" in headers or not headers else shared_service.headers() | headers
    )
    encoded = {name: value.encode("latin-1") for name, value in given.items()}

    answer = shared_service.client.get("/v1/status", headers=encoded)

    assert problem(answer) == expected
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_may_ask_and_no_other_page_is_allowed_to_read(shared_service: Service) -> None:
    own = {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}

    answer = shared_service.client.get("/v1/status", headers=shared_service.headers() | own)

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    preflight = shared_service.client.options(
        "/v1/status",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"},
    )
    assert problem(preflight) == (403, "foreign-origin")


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (b"", "audio/wav", (422, "unusable-recording")),
        (b"RIFFjunk" * 20, "audio/wav", (422, "unusable-recording")),
        (b"{}", "application/json", (415, "unknown-media-type")),
        (b"\0" * 40_000, "audio/wav", (413, "too-large")),
    ],
)
def test_what_is_no_recording_is_refused(
    make_service: Any, data: bytes, kind: str, expected: tuple[int, str]
) -> None:
    service = make_service("recognise", max_recording_bytes=30_000)

    answer = service.upload("/v1/predict", data, kind=kind)

    assert problem(answer) == expected
    assert "/proc/" not in answer.text


def test_recordings_on_their_way_are_bounded(make_service: Any, wav: bytes) -> None:
    service = make_service("recognise", max_uploads=1)
    with service.session.reserve_upload():
        assert problem(service.upload("/v1/predict", wav)) == (503, "busy")
    assert service.upload("/v1/predict", wav).status_code == 200


def test_bodies_without_a_length_are_bounded_too(make_service: Any) -> None:
    service = make_service(max_json_bytes=1_000)

    def endless() -> Any:
        for _ in range(50):
            yield b" " * 100

    answer = service.client.post("/v1/session", content=endless())

    assert problem(answer) == (413, "too-large")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"moment": 1, "emotion": "sad"}',
        b'{"moment": "x", "emotion": "sad", "more": 1}',
        b'{"moment": "x"}',
        b'{"moment": NaN, "emotion": Infinity}',
        b'{"moment": "\\ud800", "emotion": "sad"}',
        b"\xff\xfe",
        b"[" * 4_000,
    ],
)
def test_malformed_bodies_are_problems(shared_service: Service, body: bytes) -> None:
    answer = shared_service.client.post(
        "/v1/corrections",
        content=body,
        headers=shared_service.headers(**{"Content-Type": "application/json"}),
    )
    assert problem(answer)[0] in (400, 404, 422)


def test_a_moment_is_held_only_while_its_owner_may_correct_it(
    make_service: Any, wav: bytes
) -> None:
    service = make_service("recognise")
    assert service.upload("/v1/predict", wav).json()["moment"] is None

    service.session.grant_consent("personalise", 1)
    moment = service.upload("/v1/predict", wav).json()["moment"]
    assert moment
    service.client.put(
        "/v1/consent/personalise", json={"allowed": False}, headers=service.headers("personalise")
    )
    said = {"moment": moment, "emotion": "sad"}
    gone = service.client.post("/v1/corrections", json=said, headers=service.headers())
    assert problem(gone) == (404, "moment-gone")


def test_consent_is_withdrawn_by_apps_and_granted_by_the_owner_alone(
    service: Service, wav: bytes
) -> None:
    def change(who: str, purpose: str, **body: object) -> Any:
        return service.client.put(f"/v1/consent/{purpose}", json=body, headers=service.headers(who))

    state = change("recognise", "recognise", allowed=False).json()
    assert [one["allowed"] for one in state["purposes"]] == [False, True, True]
    assert problem(service.upload("/v1/predict", wav)) == (403, "consent-required")
    assert change("contribute", "contribute", allowed=False).status_code == 200
    assert not Device.open(service.session.folder).contributes

    assert problem(change("recognise", "recognise", allowed=True)) == (403, "owner-only")
    assert problem(change("owner", "recognise", allowed=True)) == (409, "text-changed")
    assert change("owner", "recognise", allowed=True, text_version=1).status_code == 200
    assert service.upload("/v1/predict", wav).status_code == 200
    log = service.client.get("/v1/consent", headers=service.headers("recognise")).json()["log"]
    assert [one["granted"] for one in log[-3:]] == [False, False, True]
    assert problem(change("owner", "sing", allowed=False)) == (422, "unusable-value")


def test_a_withdrawn_device_is_enrolled_anew_by_its_owners_consent(service: Service) -> None:
    assert service.client.post("/v1/withdrawal", headers=service.headers()).status_code == 204
    assert Device.open(service.session.folder, read_only=True).profile.withdrawn

    service.client.put(
        "/v1/consent/contribute",
        json={"allowed": True, "text_version": 1},
        headers=service.headers(),
    )

    assert Device.open(service.session.folder, read_only=True).profile.enrolment == 2


def test_the_owner_sees_privacy_exports_and_erases(service: Service, wav: bytes) -> None:
    name = service.upload("/v1/recordings?emotion=sad", wav).json()["name"]
    privacy = service.client.get("/v1/privacy", headers=service.headers("contribute")).json()
    assert (privacy["releases"], privacy["log"], privacy["budgets"][0]["left"]) == (0, [], 8.0)
    assert "Nothing is used" in privacy["budgets"][0]["sentence"]

    export = service.client.get("/v1/export", headers=service.headers())
    with zipfile.ZipFile(io.BytesIO(export.content)) as archive:
        assert name in archive.read("my-data.json").decode()

    def erase(user: str) -> Any:
        return service.client.post("/v1/erasure", json={"user": user}, headers=service.headers())

    assert problem(erase("bob")) == (422, "unusable-value")
    assert erase("ada").json() == []
    assert not service.session.folder.exists()
    for path in ("/v1/status", "/v1/recordings", "/v1/export", "/v1/privacy", "/v1/consent"):
        answer = service.client.get(path, headers=service.headers())
        assert problem(answer) == (410, "device-erased"), path


def test_settings_count_at_once_and_outlast_the_service(service: Service, wav: bytes) -> None:
    chosen = {"risk": 0.0, "coverage": 0.5, "moment_s": 0}

    answer = service.client.put("/v1/settings", json=chosen, headers=service.headers())

    assert answer.json() == chosen
    said = service.upload("/v1/predict", wav).json()
    assert (said["abstained"], said["coverage"] or 0.5, said["moment"]) == (True, 0.5, None)
    kept = json.loads(service.session.vault.get("service-settings"))
    assert kept == chosen
    for bad in ({"risk": 2}, {"coverage": 1}, {"moment_s": 1.5}, {"volume": 11}):
        refused = service.client.put("/v1/settings", json=bad, headers=service.headers())
        assert problem(refused) == (422, "unusable-value")


def test_apps_are_listed_and_revoked(service: Service) -> None:
    listed = service.client.get("/v1/apps", headers=service.headers()).json()["apps"]
    assert {one["name"] for one in listed} == {"recognise", "personalise", "contribute"}
    assert "sha256" not in str(listed)

    gone = service.client.delete("/v1/apps/recognise", headers=service.headers())

    assert gone.status_code == 204
    refused = service.client.get("/v1/status", headers=service.headers("recognise"))
    assert problem(refused) == (401, "token-unknown")
    assert len(AppTokens(service.session.vault).list_apps()) == 2


def test_a_link_opens_one_page_once(shared_service: Service) -> None:
    key = shared_service.access.issue_key()

    first = shared_service.client.post("/v1/session", json={"key": key})
    second = shared_service.client.post("/v1/session", json={"key": key})

    token = first.json()["token"]
    answer = shared_service.client.get("/v1/status", headers={"Authorization": f"Bearer {token}"})
    assert answer.json()["is_owner"]
    assert problem(second) == (401, "link-used")


def test_an_app_that_asks_too_often_is_told_when_to_come_back(make_service: Any) -> None:
    service = make_service(requests_per_s=0.1, burst=3)
    status = [
        service.client.get("/v1/status", headers=service.headers("recognise")).status_code
        for _ in range(3)
    ]
    late = service.client.get("/v1/status", headers=service.headers("recognise"))

    assert status == [200] * 3
    assert problem(late) == (429, "too-many-requests")
    assert 1 <= int(late.headers["retry-after"]) <= 11
    other = service.client.get("/v1/status", headers=service.headers("contribute"))
    assert other.status_code == 200, "each app has a bucket of its own"


def test_what_nobody_foresaw_is_a_problem_without_its_words(
    shared_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("sottovoce.client.service.app_tokens.AppTokens.list_apps", fail)
    client = TestClient(
        shared_service.client.app,
        base_url=shared_service.client.base_url,
        raise_server_exceptions=False,
    )
    answer = client.get("/v1/apps", headers=shared_service.headers())

    assert problem(answer) == (500, "failed")
    assert "secret" not in answer.text


def test_unknown_paths_and_methods_are_problems(shared_service: Service) -> None:
    get = shared_service.client.get("/v1/nothing", headers=shared_service.headers())
    put = shared_service.client.put("/v1/status", headers=shared_service.headers())

    assert problem(get) == (404, "not-found")
    assert problem(put) == (405, "method-not-allowed")
    assert put.headers["allow"] == "GET"


def test_the_description_is_complete(shared_service: Service) -> None:
    document = shared_service.client.get("/v1/openapi.json").json()

    schemas = document["components"]["schemas"]
    assert "Problem" in schemas
    assert "HTTPValidationError" not in json.dumps(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            codes = set(operation["responses"])
            assert {"401", "403", "422", "429", "500"} <= codes, (path, method)
            for code in codes - {"200", "201", "204"}:
                assert "application/problem+json" in operation["responses"][code]["content"]


def test_made_up_sound_is_recognised_alike_in_each_container(
    shared_service: Service, wav: bytes, voice: np.ndarray
) -> None:
    import soundfile

    said = shared_service.upload("/v1/predict", wav).json()["probabilities"]
    for name, kind in (("FLAC", "audio/flac"), ("OGG", "audio/ogg")):
        data = io.BytesIO()
        soundfile.write(data, voice, 16_000, format=name)
        answer = shared_service.upload("/v1/predict", data.getvalue(), kind=kind).json()
        assert answer["probabilities"] == pytest.approx(said, abs=0.1), name
