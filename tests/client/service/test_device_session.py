"""The device that a service works for, and the model that it opens."""

import shutil
from pathlib import Path

import pytest

from sottovoce.client.device.vault import FileVault
from sottovoce.client.service.device_session import DeviceSession
from sottovoce.client.service.schemas import Settings
from sottovoce.client.service.service_limits import ServiceLimits
from sottovoce.client.user_device import UserDevice
from sottovoce.shared import crypto
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.default_model import DEFAULT_MODEL
from sottovoce.shared.models.model_folder import sign_model_folder


def test_a_model_must_be_signed_whenever_it_is_opened(tmp_path: Path) -> None:
    folder, model = tmp_path / "ada", Path(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"))
    UserDevice.create(folder, user="ada", use="research").consent.grant("recognise")
    key = sign_model_folder(model, crypto.new_key())
    session = DeviceSession(
        folder,
        FileVault.open(folder / "vault"),
        model=model,
        limits=ServiceLimits(),
        trusted_key=key,
    )
    assert session.labels

    (model / "manifest.sig").unlink()  # another's folder in its place
    session.change_settings(Settings(risk=0.3))  # opens the model anew
    with pytest.raises(ModelError, match="it is not signed"):
        _ = session.user_device.recogniser
    session.close()
