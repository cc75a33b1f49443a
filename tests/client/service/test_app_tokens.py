"""Tokens of apps: shown once, kept as hashes, sealed."""

from pathlib import Path

import pytest

from sottovoce.client.device.vault import FileVault
from sottovoce.client.service.app_tokens import MAX_APPS, AppTokens, Scope
from sottovoce.shared.errors import PrivacyError, SettingError


@pytest.fixture
def vault(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "vault", user="ada")


def test_a_token_is_found_until_it_is_revoked_and_never_kept(vault: FileVault) -> None:
    tokens = AppTokens(vault)
    token = tokens.create_token("diary", ["recognise", Scope.PERSONALISE, "recognise"])

    found = AppTokens(vault).find_app(token)
    assert found is not None
    assert (found.name, found.scopes) == ("diary", (Scope.PERSONALISE, Scope.RECOGNISE))
    assert tokens.find_app(token + "x") is None
    assert token.encode() not in vault.get("app-tokens")
    blob = vault.folder / "app-tokens.sealed"
    assert blob.stat().st_mode & 0o077 == 0
    assert b"diary" not in blob.read_bytes()

    tokens.revoke_token("diary")
    assert tokens.find_app(token) is None


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("", ["recognise"], "1 to 64"),
        ("a b", ["recognise"], "1 to 64"),
        ("x" * 65, ["recognise"], "1 to 64"),
        ("diary", [], "no scope"),
        ("diary", ["recognize"], "did you mean recognise"),
        ("taken", ["recognise"], "revoke it first"),
    ],
)
def test_a_mistake_creates_nothing(
    vault: FileVault, name: str, scopes: list[str], message: str
) -> None:
    tokens = AppTokens(vault)
    tokens.create_token("taken", ["contribute"])

    with pytest.raises(SettingError, match=message):
        tokens.create_token(name, scopes)

    assert [app.name for app in tokens.list_apps()] == ["taken"]
    with pytest.raises(SettingError, match="did you mean taken"):
        tokens.revoke_token("takn")


def test_there_are_not_endlessly_many(vault: FileVault) -> None:
    tokens = AppTokens(vault)
    for number in range(MAX_APPS):
        tokens.create_token(f"app{number}", ["recognise"])
    with pytest.raises(SettingError, match="the most that may"):
        tokens.create_token("one-more", ["recognise"])


def test_a_damaged_record_opens_nothing(vault: FileVault) -> None:
    tokens = AppTokens(vault)
    token = tokens.create_token("diary", ["recognise"])
    vault.put("app-tokens", b'{"schema": 1, "apps": [{"name": "diary"}]}')

    with pytest.raises(PrivacyError):
        tokens.find_app(token)
