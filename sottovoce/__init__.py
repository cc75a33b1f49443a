"""Sottovoce: federated, differentially private speech emotion recognition.

The rooms ``shared``, ``client``, ``server`` and ``simulations`` lie beside this folder in a
checkout and in the bundle that Flower ships, and inside it in a wheel. Either way they import
as ``sottovoce.shared`` and so on.
"""

from pathlib import Path

__version__ = "0.1.0"

_house = Path(__file__).resolve().parent.parent
if (_house / "pyproject.toml").is_file():  # a checkout, or an unpacked app bundle
    __path__.append(str(_house))
