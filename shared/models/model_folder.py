"""A model folder as one thing: a manifest hashes every file, and a signature may seal the manifest.

``manifest.json`` holds the SHA-256 of every other file. ``manifest.sig``, which is optional, holds
an Ed25519 signature of it. The hashes show that the files belong together and are whole. Only a
signature by a key that the reader pinned shows *whose* they are: whoever alters a file can hash it
again.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sottovoce.shared import codec, crypto
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.bounded_files import read_bounded_file
from sottovoce.shared.codec import Ed25519Signature, Sha256
from sottovoce.shared.errors import ModelError, SettingError

METADATA_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"
ONNX_FILE = "model.onnx"
"""Instead of the weights in the folder of an exported model."""
MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"

MAX_WEIGHTS_BYTES: Final = 1 << 27
MAX_OTHER_BYTES: Final = 1 << 20
MAX_FILES: Final = 32
"""Bounds on what is read of a stranger's folder: 128 MiB of tensors, 1 MiB of any other file."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PURPOSE: Final = "sottovoce model folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Record of ``manifest.json``, which names all files.

    Attributes:
        schema: Always 1.
        files: SHA-256 of each file, by name.
    """

    schema: Literal[1] = 1
    files: dict[str, Sha256]


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSignature:
    """Record of ``manifest.sig``, a signature of the manifest.

    Attributes:
        schema: Always 1.
        public_key: Ed25519 key of whoever signed, 64 hexadecimal digits.
        signature: Of the manifest's bytes, 128 hexadecimal digits.
    """

    schema: Literal[1] = 1
    public_key: Sha256
    signature: Ed25519Signature


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """Verified content of a model folder.

    Attributes:
        files: Content of each file, by name.
        digest: SHA-256 of the manifest: of all of it, 64 hexadecimal digits; "" for a folder of an
            earlier release, which has none.
        signed_by: Public key whose signature is valid, 64 hexadecimal digits; "" for none.
    """

    files: Mapping[str, bytes]
    digest: str = ""
    signed_by: str = ""


def find_model(folder: str | Path) -> Path:
    """Find the model folder in a run folder; a folder that is none is returned as it is.

    Args:
        folder: A run folder, or a model folder.

    Example:
        >>> find_model("exported").name
        'exported'
    """
    folder = Path(folder)
    return folder / "model" if (folder / "model" / "model.json").is_file() else folder


def read_model_folder(folder: Path, *, trusted_key: str = "") -> ModelFolder:
    """Read a model folder and verify that it is the one that its manifest describes.

    Args:
        folder: The model folder.
        trusted_key: Public key that must have signed it, 64 hexadecimal digits; "" asks for no
            signature.

    Guarantees:
        - Regular files alone are read, each within its bound; links are not followed.
        - Every file is the one that the manifest names, and there is no other but hidden ones.
        - With a ``trusted_key``, whoever holds its private half signed exactly these files. A
          folder without a manifest or without a signature is refused.

    Raises:
        FileNotFoundError: There is no model.
        ModelError: Damaged, altered, larger than a model, or not signed by the key.
    """
    try:
        raw = _read(folder / MANIFEST_FILE)
    except FileNotFoundError:
        if trusted_key:
            raise ModelError(
                f"it has no {MANIFEST_FILE}, so nobody signed it; get a signed one"
            ) from None
        return ModelFolder(
            files={name: _read(folder / name) for name in (METADATA_FILE, WEIGHTS_FILE)}
        )
    manifest = _decode_manifest(raw)
    files = _read_files(folder, manifest)
    return ModelFolder(
        files=files,
        digest=hashlib.sha256(raw).hexdigest(),
        signed_by=_verify_signature(folder, raw, trusted_key),
    )


def write_model_folder(folder: Path, files: Mapping[str, bytes]) -> str:
    """Write the files of a model, and last the manifest, so that half a model is refused.

    A signature that was there belongs to other files, and is removed.

    Returns:
        SHA-256 of the manifest, 64 hexadecimal digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # First: a crash from here on leaves a folder that is refused, not one that seems signed.
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    for name, data in files.items():
        replace_file(folder / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    raw = _encode({"schema": 1, "files": hashes})
    replace_file(folder / MANIFEST_FILE, raw)
    return hashlib.sha256(raw).hexdigest()


def sign_model_folder(folder: Path, private_key: bytes) -> str:
    """Sign a model folder that is whole.

    Args:
        folder: The model folder; one of an earlier release must be written anew first.
        private_key: Ed25519, 32 bytes.

    Returns:
        The public key, 64 hexadecimal digits, which users of the model pin.

    Raises:
        FileNotFoundError: There is no model.
        ModelError: Damaged, or without a manifest.
    """
    found = read_model_folder(folder)
    if not found.digest:
        raise ModelError(f"it has no {MANIFEST_FILE}; export the model anew, then sign it")
    public = crypto.identity_public_key(private_key).hex()
    signed = crypto.sign_message(private_key, _statement(found.digest))
    record = {"schema": 1, "public_key": public, "signature": signed.hex()}
    replace_file(folder / SIGNATURE_FILE, _encode(record))
    return public


def parse_public_key(text: str) -> str:
    """Parse a public key in hexadecimal digits, as it is printed.

    Raises:
        SettingError: Not 64 hexadecimal digits.

    Example:
        >>> parse_public_key("AB" * 32)[:4]
        'abab'
    """
    key = text.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise SettingError(
            f"the trusted key is {text[:80]!r}; it must be the 64 hexadecimal digits that "
            "'sottovoce model sign' printed"
        )
    return key


def read_private_key(path: Path) -> bytes:
    """Read a private key of 64 hexadecimal digits from a file.

    Raises:
        SettingError: There is no such file, or it holds anything else.
    """
    way_out = "name one that 'sottovoce model key' wrote"
    try:
        text = read_bounded_file(path.resolve(), max_bytes=1_000, error=SettingError)
        key = bytes.fromhex(text.decode("ascii"))
    except (FileNotFoundError, ValueError, RuntimeError):
        raise SettingError(f"{path} holds no key; {way_out}") from None
    if len(key) != crypto.KEY_BYTES:
        raise SettingError(f"{path} holds a key of {len(key)} bytes; {way_out}")
    return key


def _read(path: Path) -> bytes:
    limit = MAX_WEIGHTS_BYTES if path.name in (WEIGHTS_FILE, ONNX_FILE) else MAX_OTHER_BYTES
    return read_bounded_file(path, max_bytes=limit, error=ModelError)


def _decode_manifest(raw: bytes) -> Manifest:
    manifest = codec.decode_json(raw, Manifest, name=MANIFEST_FILE, error=ModelError)
    names = set(manifest.files)
    if not all(_NAME.fullmatch(name) for name in names) or len(names) > MAX_FILES:
        raise ModelError(
            f"{MANIFEST_FILE} names {len(names)} files; at most {MAX_FILES}, of plain names "
            "without folders"
        )
    weights = names & {WEIGHTS_FILE, ONNX_FILE}
    if METADATA_FILE not in names or len(weights) != 1 or {MANIFEST_FILE, SIGNATURE_FILE} & names:
        raise ModelError(
            f"{MANIFEST_FILE} must name {METADATA_FILE} and {WEIGHTS_FILE}, or {ONNX_FILE}, and "
            "not itself"
        )
    return manifest


def _read_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read all files, if each is the one that the manifest names."""
    files, altered = {}, []
    for name, digest in sorted(manifest.files.items()):
        try:
            files[name] = _read(folder / name)
        except FileNotFoundError:
            raise ModelError(f"{name}, which {MANIFEST_FILE} names, is missing") from None
        if hashlib.sha256(files[name]).hexdigest() != digest:
            altered.append(name)
    if altered:
        raise ModelError(
            f"{', '.join(altered)} is not the one that {MANIFEST_FILE} names: damaged, or altered"
        )
    known = {*manifest.files, MANIFEST_FILE, SIGNATURE_FILE}
    with os.scandir(folder) as entries:
        # Hidden files are those that systems leave everywhere; a model has none.
        foreign = [one.name for one in entries if not one.name.startswith(".")]
    foreign = sorted(set(foreign) - known)
    if foreign:
        raise ModelError(
            f"it holds {', '.join(foreign[:3])}, which {MANIFEST_FILE} does not name; move it "
            "elsewhere"
        )
    return files


def _verify_signature(folder: Path, manifest: bytes, trusted_key: str) -> str:
    """Public key whose signature is valid; a signature that is not valid is refused."""
    try:
        raw = _read(folder / SIGNATURE_FILE)
    except FileNotFoundError:
        if trusted_key:
            raise ModelError(
                f"it is not signed, and must be by {trusted_key[:16]}...; get a signed one"
            ) from None
        return ""
    record = codec.decode_json(raw, FolderSignature, name=SIGNATURE_FILE, error=ModelError)
    if trusted_key and record.public_key != trusted_key:
        raise ModelError(
            f"it is signed by {record.public_key[:16]}..., and must be by {trusted_key[:16]}...; "
            "get it from its publisher"
        )
    statement = _statement(hashlib.sha256(manifest).hexdigest())
    public, signature = bytes.fromhex(record.public_key), bytes.fromhex(record.signature)
    if not crypto.verify_signature(public, signature, statement):
        raise ModelError(f"{SIGNATURE_FILE} does not sign these files: damaged, or altered")
    return record.public_key


def _statement(digest: str) -> bytes:
    """What a signature signs: the manifest's hash, with its purpose."""
    return crypto.encode_context(_PURPOSE, digest)


def _encode(record: Mapping[str, object]) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
