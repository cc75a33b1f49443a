"""Sottovoce: federated, differentially private speech emotion recognition.

Most programs need six names::

    from sottovoce import Device, OnnxRecogniser, Recogniser, UserDevice, simulate, verify

``OnnxRecogniser`` predicts with exported models and needs none of what training needs.

They are loaded when they are first used (PEP 562), so ``import sottovoce`` brings in no library.

The rooms ``shared``, ``client``, ``server`` and ``simulations`` lie beside this folder in a
checkout and in the bundle that Flower ships, and inside it in a wheel. Either way they import
as ``sottovoce.shared`` and so on.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.extras import explain_missing_library

if TYPE_CHECKING:
    from sottovoce.api import simulate, verify
    from sottovoce.client.device.device import Device
    from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
    from sottovoce.client.recognition.recogniser import Recogniser
    from sottovoce.client.user_device import UserDevice

__all__ = [
    "Device",
    "OnnxRecogniser",
    "Recogniser",
    "UserDevice",
    "__version__",
    "simulate",
    "verify",
]
__version__ = "0.1.0"

_PUBLIC = {
    "Device": "sottovoce.client.device.device",
    "OnnxRecogniser": "sottovoce.client.recognition.onnx_recogniser",
    "Recogniser": "sottovoce.client.recognition.recogniser",
    "UserDevice": "sottovoce.client.user_device",
    "simulate": "sottovoce.api",
    "verify": "sottovoce.api",
}
"""By public name, the module that defines it."""

_house = Path(__file__).resolve().parent.parent
if (_house / "pyproject.toml").is_file():  # a checkout, or an unpacked app bundle
    __path__.append(str(_house))


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_PUBLIC[name])
    except ModuleNotFoundError as error:
        way_out = explain_missing_library(error)
        if not way_out:
            raise
        raise ModuleNotFoundError(f"{name}: {way_out}", name=error.name) from error
    # Kept in the module, so that this is called once a name.
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *_PUBLIC})
