"""A static site that recognises emotions in the browser: page, code, model, detector, runtime.

All of it is read from the machine's own disk; nothing is downloaded. The site asks for nothing but
its own files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.audio.speech_detector import (
    INSTALL_COMMAND,
    MODEL_FILE,
    PACKAGE,
    SILERO_SHA256,
)
from sottovoce.shared.checksums import read_packaged_file
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.model_folder import (
    MANIFEST_FILE,
    ONNX_FILE,
    SIGNATURE_FILE,
    read_model_folder,
)

FOLDER: Final = Path(__file__).resolve().parent
"""Where the npm package lies, in a checkout and in a wheel."""

RUNTIME_FILES: Final = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
"""What a page needs of onnxruntime-web: its code, its loader, and the runtime itself."""

DETECTOR_FILE: Final = "detector.onnx"


def write_site(site: Path, *, model: Path, runtime: Path, trusted_key: str = "") -> int:
    """Write a site that any static server can serve.

    Args:
        site: Made where it is missing; files of an earlier one are replaced.
        model: An exported model.
        runtime: Folder with the files of the npm package onnxruntime-web.
        trusted_key: Public key that must have signed the model, 64 hexadecimal digits; "" asks for
            no signature.

    Returns:
        Size of all files in bytes, uncompressed.

    Raises:
        ModelError: The model is missing, not exported, damaged, or not signed by the key.
        SettingError: The runtime is not there.
    """
    # First, so that nothing is written where half of it is missing.
    missing = [name for name in RUNTIME_FILES if not (runtime / name).is_file()]
    if missing:
        raise SettingError(
            f"{runtime} holds no {missing[0]}; get it with 'npm install onnxruntime-web', and name "
            "its folder dist with --runtime"
        )
    files = {**dict(_code_files()), **_model_files(model, trusted_key)}
    files |= {f"runtime/{name}": (runtime / name).read_bytes() for name in RUNTIME_FILES}
    files[DETECTOR_FILE] = read_packaged_file(
        PACKAGE, MODEL_FILE, sha256=SILERO_SHA256, install_command=INSTALL_COMMAND
    )
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(site / name, content)
    return sum(map(len, files.values()))


def _code_files() -> Iterator[tuple[str, bytes]]:
    """The package's own code, and the page."""
    for folder, prefix in (("src", "sottovoce/"), ("demo", "")):
        for path in sorted((FOLDER / folder).iterdir()):
            yield f"{prefix}{path.name}", path.read_bytes()


def _model_files(model: Path, trusted_key: str) -> dict[str, bytes]:
    """The verified files of an exported model, with its manifest."""
    try:
        found = read_model_folder(model, trusted_key=trusted_key)
    except FileNotFoundError as error:
        raise ModelError(f"{model} holds no exported model; run 'sottovoce export'") from error
    if ONNX_FILE not in found.files or not found.digest:
        raise ModelError(f"{model} holds no exported model; run 'sottovoce export'")
    # As they lie there: a signature is of the manifest's very bytes.
    names = [MANIFEST_FILE] + [SIGNATURE_FILE] * bool(found.signed_by)
    sealed = {name: (model / name).read_bytes() for name in names}
    return {f"model/{name}": content for name, content in {**found.files, **sealed}.items()}
