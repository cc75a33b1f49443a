"""Tokens and the service by command."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.client.device.vault import FileVault
from sottovoce.client.service import server
from sottovoce.client.service.app_tokens import AppTokens
from sottovoce.client.user_device import UserDevice

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ada(tmp_path: Path) -> Path:
    UserDevice.create(tmp_path / "ada", user="ada", use="research")
    return tmp_path / "ada"


def test_an_app_gets_a_token_and_loses_it(say: Say, ada: Path) -> None:
    scopes = ("--scope", "recognise", "--scope", "personalise")
    status, out, _ = say("device", "token", "create", ada, "diary", *scopes)
    assert status == 0
    tokens = AppTokens(FileVault.open(ada / "vault"))
    assert tokens.find_app(out.strip()) is not None

    listed = json.loads(say("device", "token", "list", ada, "--json")[1])
    assert [(one["name"], one["scopes"]) for one in listed] == [
        ("diary", ["personalise", "recognise"])
    ]
    assert say("device", "token", "list", ada)[1].startswith("diary  personalise, recognise")
    assert say("device", "token", "create", ada, "diary", *scopes)[0] == 2
    assert say("device", "token", "revoke", ada, "diary")[0] == 0
    assert tokens.find_app(out.strip()) is None
    assert say("device", "token", "list", ada)[1] == "no app has a token\n"
    status, _, last = say("device", "token", "revoke", ada, "diary")
    assert (status, "has no token" in last) == (2, True)


def test_the_service_says_where_it_listens_and_how_its_owner_gets_in(
    say: Say, ada: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []

    def serve(session: Any, access: Any, listening: socket.socket) -> None:
        served.append((access, listening.getsockname()))
        listening.close()
        session.close()

    monkeypatch.setattr(server, "run_service", serve)

    status, out, _ = say("device", "serve", ada, "--port", "0")

    ((access, (host, port)),) = served
    link = re.search(r"http://127\.0\.0\.1:(\d+)/#key=(\S+)", out)
    assert link is not None
    assert (status, host, int(link[1])) == (0, "127.0.0.1", port)
    assert access.identify(access.open_session(link[2])).is_owner


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "192.168.0.1"), "loopback alone"),
        (("--port", "99999"), "--port"),
        (("--model", "no-such-model"), "no-such-model"),
        (("--trusted-key", "00" * 32), "signed"),
    ],
)
def test_a_service_that_cannot_be_is_refused(
    say: Say, ada: Path, words: tuple[str, ...], message: str
) -> None:
    status, out, last = say("device", "serve", ada, *words)

    assert (status in (1, 2), out, message in last) == (True, "", True), last
