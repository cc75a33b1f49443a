"""Folders of strangers: a model or a device is read or refused, in its own words and in 1 GB."""

import contextlib
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_model_package
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, encode_json, mutated_bytes, mutated_json, mutated_json_texts

from sottovoce.client.device.profile import DeviceProfile
from sottovoce.client.recognition.recogniser import Recogniser
from sottovoce.shared import codec, crypto
from sottovoce.shared.errors import FeatureError, ModelError, PrivacyError, SottovoceError
from sottovoce.shared.models.model_folder import sign_model_folder
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.privacy.ledger import PrivacyBudget

FILES = ("model.json", "model.safetensors", "manifest.json", "manifest.sig")
PROFILE = DeviceProfile(
    user="ada", budgets=(PrivacyBudget(epsilon=1.0, delta=1e-5, per_run=0.5),), labels=("a", "b")
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a signed model."""
    folder = tmp_path_factory.mktemp("valid")
    build_model_package(neutral_direction=torch.tensor([0.0, 1.0, 0.0])).save(folder)
    sign_model_folder(folder, crypto.new_key())
    return {name: (folder / name).read_bytes() for name in FILES}


def write(folder: Path, files: dict[str, bytes], *, hashed_again: bool) -> None:
    """Write a model's files; whoever alters them can hash them again."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if hashed_again:
        hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in FILES[:2]}
        (folder / "manifest.json").write_bytes(encode_json({"schema": 1, "files": hashes}))
        (folder / "manifest.sig").unlink()


def load_or_refuse(folder: Path) -> None:
    with contextlib.suppress(ModelError, FeatureError):
        package = ModelPackage.load(folder)
        Recogniser(package).predict_probabilities(torch.zeros(4))


@FUZZ
@given(data=st.data())
def test_any_bytes_in_a_model_folder_are_read_or_refused(
    tmp_path: Path, valid: dict[str, bytes], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(FILES))
    files = valid | {name: data.draw(mutated_bytes(valid[name]))}

    write(tmp_path / "model", files, hashed_again=data.draw(st.booleans()))

    load_or_refuse(tmp_path / "model")


@FUZZ
@given(data=st.data())
def test_any_metadata_is_read_or_refused(
    tmp_path: Path, valid: dict[str, bytes], data: st.DataObject
) -> None:
    metadata = json.loads(valid["model.json"])
    text = data.draw(mutated_json_texts(metadata))

    write(tmp_path / "model", valid | {"model.json": text}, hashed_again=True)

    load_or_refuse(tmp_path / "model")


@FUZZ
@given(data=st.data())
def test_any_header_of_tensors_is_read_or_refused(
    tmp_path: Path, valid: dict[str, bytes], data: st.DataObject
) -> None:
    weights = valid["model.safetensors"]
    size = int.from_bytes(weights[:8], "little")
    header, numbers = json.loads(weights[8 : 8 + size]), weights[8 + size :]
    text = data.draw(mutated_json(header).map(encode_json))
    changed = len(text).to_bytes(8, "little") + text + numbers
    metadata = json.loads(valid["model.json"]) | {"sha256": hashlib.sha256(changed).hexdigest()}
    files = valid | {"model.safetensors": changed, "model.json": encode_json(metadata)}

    write(tmp_path / "model", files, hashed_again=True)

    load_or_refuse(tmp_path / "model")


@FUZZ
@given(text=mutated_json_texts(PROFILE.to_dict()))
def test_any_device_record_is_read_or_refused(text: bytes) -> None:
    try:
        content = codec.decode_json(text, dict[str, Any], name="device.json", error=PrivacyError)
        found = DeviceProfile.from_dict(content, name="device.json")
    except PrivacyError:  # LedgerError, of a budget that cannot be, is one
        return
    assert DeviceProfile.from_dict(found.to_dict(), name="device.json") == found


@FUZZ
@given(numbers=st.lists(st.floats(width=32), min_size=8, max_size=8), extreme=st.floats(width=32))
def test_a_model_of_any_numbers_predicts_or_is_refused(
    numbers: list[float], extreme: float
) -> None:
    with contextlib.suppress(SottovoceError):
        package = build_model_package(
            weights=torch.tensor(numbers), centre=torch.full((3,), extreme)
        )
        found = Recogniser(package).predict_probabilities(torch.ones(4))
        assert found.shape == (2,)


LOAD_ALL = """
import sys
from pathlib import Path
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.model_package import ModelPackage
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        ModelPackage.load(folder)
    except ModelError:
        continue
    sys.exit(f"{folder.name} was accepted")
# The peak of this program alone: a resource usage would begin with that of whoever started it.
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(int(peak.split()[1]) // 1024)
"""


def test_the_worst_folders_take_less_than_a_gigabyte(
    tmp_path: Path, valid: dict[str, bytes]
) -> None:
    metadata = json.loads(valid["model.json"])
    spec, large = metadata["model"], (1 << 62).to_bytes(8, "little")
    worst: dict[str, dict[str, bytes]] = {
        "wide": {"model.json": encode_json(metadata | {"model": spec | {"hidden": 10**9}})},
        "lstm": {
            "model.json": encode_json(
                metadata | {"model": spec | {"kind": "bilstm-attention", "hidden": 65_536}}
            )
        },
        "deep": {"model.json": b"[" * 200_000},
        "lists": {"model.json": b"[" + b"[]," * 300_000 + b"[]]"},
        "labels": {"model.json": encode_json(metadata | {"labels": ["x" * 199] * 4_000})},
        "extractor": {
            "model.json": encode_json(metadata | {"extractor": "+".join(["log-mel"] * 2_000)})
        },
        "long header": {"model.safetensors": large + b"{" * 100},
        "metadata too large": {"model.json": b" " * (2 << 20)},
    }
    for name, files in worst.items():
        write(tmp_path / name, valid | files, hashed_again=True)
    write(tmp_path / "too large", valid, hashed_again=True)
    with (tmp_path / "too large" / "model.safetensors").open("r+b") as file:
        file.truncate(100 << 30)  # takes no room on the disk

    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000
