"""A device with the packaged model, and the service over it."""

import io
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from sottovoce.client.device.vault import FileVault
from sottovoce.client.service.access import Access
from sottovoce.client.service.app_tokens import AppTokens, Scope
from sottovoce.client.service.device_session import DeviceSession
from sottovoce.client.service.server import build_app, build_server, open_socket
from sottovoce.client.service.service_limits import ServiceLimits
from sottovoce.client.user_device import UserDevice
from sottovoce.shared.models.default_model import DEFAULT_MODEL
from sottovoce.simulations.corpora import open_corpus

PORT = 8765


@dataclass
class Service:
    """A service under test, with a token for each kind of caller."""

    session: DeviceSession
    access: Access
    client: TestClient
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        apps = AppTokens(self.session.vault)
        for scope in Scope:
            self.tokens[scope.value] = apps.create_token(scope.value, [scope])
        self.tokens["owner"] = self.access.open_session(self.access.issue_key())

    def headers(self, who: str = "owner", **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[who]}"} | more

    @contextmanager
    def running(self) -> Iterator[int]:
        """The same on a real socket, in a thread; its port."""
        listening = open_socket("127.0.0.1", 0)
        port: int = listening.getsockname()[1]
        server = build_server(self.session, self.access, port=port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()
            listening.close()

    def upload(self, path: str, data: bytes, who: str = "owner", kind: str = "audio/wav") -> Any:
        return self.client.post(
            path, content=data, headers=self.headers(who, **{"Content-Type": kind})
        )


@pytest.fixture(scope="session")
def voice() -> np.ndarray:
    """Two seconds of a made-up voice at 16 kHz, shape (samples,), float32."""
    clip = open_corpus("synthetic", "speakers=1,clips=1,seed=5").clips[0].load_signal()
    return np.tile(np.asarray(clip.waveform, dtype=np.float32), 4)[:32_000]


@pytest.fixture(scope="session")
def wav(voice: np.ndarray) -> bytes:
    """The same as a WAV file."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((voice * 32_767).astype("<i2").tobytes())
    return data.getvalue()


MakeService = Callable[..., Service]


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    """Makes a service for Ada, who consents to what is named."""
    with _services(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that no test of a module changes."""
    with _services(tmp_path_factory.mktemp("shared")) as make:
        yield make("recognise", "personalise", "contribute")


@contextmanager
def _services(home: Path) -> Iterator[MakeService]:
    made: list[Service] = []

    def make(*consents: str, **limits: float) -> Service:
        folder = home / f"ada{len(made)}"
        UserDevice.create(folder, user="ada", use="research").consent.grant(*consents)
        vault = FileVault.open(folder / "vault")
        bounds = ServiceLimits(**{"requests_per_s": 1e6, "burst": 10**6} | limits)  # type: ignore[arg-type]
        session = DeviceSession(folder, vault, model=DEFAULT_MODEL, limits=bounds)
        access = Access(AppTokens(vault), bounds)
        app = build_app(session, access, port=PORT)
        client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
        client.__enter__()
        made.append(Service(session, access, client))
        return made[-1]

    yield make
    for service in made:
        service.client.__exit__(None, None, None)


@pytest.fixture
def service(make_service: MakeService) -> Service:
    """A service whose user consents to all."""
    return make_service("recognise", "personalise", "contribute")
