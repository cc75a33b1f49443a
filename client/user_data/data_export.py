"""Everything that a device holds of its user, in a form that people and programs can read.

A ZIP archive::

    README.txt               what is in it
    my-data.json             decisions, consent and its texts, recordings, ledger, all other records
    vault/BLOB/TENSOR.npy    numbers: features, means, heads, updates as they were sent (NumPy)
"""

import base64
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from sottovoce.client.device.consent import CONSENT_TEXTS
from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault, write_file
from sottovoce.client.user_data.recordings import list_recordings
from sottovoce.shared.errors import PrivacyError, SettingError

SCHEMA: Final = 1

SECRETS: Final = frozenset({"identity"})
"""Blobs that are keys: whoever had a copy could answer in the user's name."""

_README: Final = """Everything that this device holds of {user}, exported on {at}.

my-data.json           what you decided, what you consented to and when, each recording by name with
                       what you said that it was, and every release that ever left the device
vault/BLOB/TENSOR.npy  the numbers behind it, as NumPy arrays. No sound is kept, so none is here.

Not here: {left_out}. This file is not encrypted: keep it where only you can read it.
"""


def export_data(device: Device, vault: FileVault) -> bytes:
    """Export everything that a device holds of its user.

    Args:
        device: The user's; it is only read.
        vault: The device's.

    Returns:
        A ZIP archive; see this module.

    Guarantees:
        - Every blob of the vault is in it, or is named in ``left_out``, with the reason.

    Raises:
        PrivacyError: The vault is damaged.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    secrets = [name for name in vault.list_names() if name in SECRETS]
    tensors: dict[str, Tensor] = {}
    content = {
        "schema": SCHEMA,
        "exported_at": at,
        "user": device.profile.user,
        "profile": device.profile.to_dict(),
        "consent": _describe_consent(device),
        "recordings": [one.to_dict() for one in list_recordings(device)],
        "ledger": [one.to_dict() for one in device.ledger.releases],
        "vault": {
            name: _read_blob(vault, name, tensors)
            for name in vault.list_names()
            if name not in SECRETS
        },
        "left_out": dict.fromkeys(
            secrets, "a private key: whoever had a copy could answer in your name"
        ),
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        left_out = ", ".join(["the key of the vault", *secrets])
        archive.writestr(
            "README.txt", _README.format(user=device.profile.user, at=at, left_out=left_out)
        )
        archive.writestr("my-data.json", json.dumps(content, indent=1, ensure_ascii=False))
        for path, tensor in tensors.items():
            archive.writestr(path, _encode_array(tensor))
    return data.getvalue()


def write_export(device: Device, vault: FileVault, path: Path) -> None:
    """Write :func:`export_data` to a new file that only its owner may read.

    Args:
        device: The user's.
        vault: The device's.
        path: Of a file that is not there yet.

    Raises:
        SettingError: There is a file already.
        PrivacyError: The vault is damaged, or the disk refuses.
    """
    if path.exists():
        raise SettingError(f"{path} is there already; choose another name, or remove it")
    write_file(path, export_data(device, vault))


def _describe_consent(device: Device) -> dict[str, Any]:
    """The record of consent, and the texts of today."""
    texts = {
        purpose.value: {"version": one.version, "text": one.text}
        for purpose, one in CONSENT_TEXTS.items()
    }
    return {**device.consent.read().to_dict(), "texts": texts}


def _read_blob(vault: FileVault, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401  (JSON)
    """One blob as JSON; its tensors go beside it."""
    try:
        found = vault.get_tensors(name)
    except PrivacyError:
        return _decode_text(vault.get(name))
    paths = {f"vault/{name}/{key}.npy": tensor for key, tensor in found.items()}
    tensors |= paths
    return {"arrays": list(paths)}


def _decode_text(data: bytes) -> Any:  # noqa: ANN401  (JSON)
    """Bytes as JSON, as text, or in base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
    try:
        return json.loads(text)
    except ValueError:
        return text


def _encode_array(tensor: Tensor) -> bytes:
    """One array in NumPy's format."""
    data = io.BytesIO()
    np.save(data, tensor.detach().cpu().numpy(), allow_pickle=False)
    return data.getvalue()
