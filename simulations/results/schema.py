"""The JSON files of a run folder: what they must hold, and how they reach the disk whole.

A reader relies on the keys below; more keys may be there. A number may be null where nothing
could be measured: JSON has no NaN, and an epsilon of null says that there is no guarantee.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import MessageError, SettingError, SottovoceError

SCHEMA_VERSION = 2
"""Schema 1 had other keys: ``worlds``, ``alike``, ``head_clips``, ``lives``."""
UNITS = ("none", "utterance", "user", "both")

Json = dict[str, Any]
Shape = Any  # a name of _LEAVES; {"key": Shape}, "key?" may be absent; [Shape]; {"*": Shape}

_LEAVES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "whole": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "number": lambda value: value is None or _finite(value),
    "share": lambda value: value is None or (_finite(value) and -1e-9 <= value <= 1 + 1e-9),
    "unit": lambda value: value in UNITS,
    "any": lambda _: True,
}
_LEAF_NAMES = {
    "text": "a text",
    "whole": "a whole number, 0 or above",
    "number": "a finite number or null",
    "share": "a number from 0 to 1 or null",
    "unit": f"one of {', '.join(UNITS)}",
}

_GROUPS: Shape = {"groups": {"*": {"uar": "share", "n": "whole"}}, "gap": "share"}
_ERRORS: Shape = {"ece": "share", "nll": "number", "brier": "number"}
_BINS: Shape = [{"count": "whole", "confidence": "share", "accuracy": "share"}]
_INTERVALS: Shape = {"before": ["number"], "after": ["number"], "difference": ["number"]}
_SETS: Shape = {
    "wanted": "share",
    "covered": "share",
    "interval": ["share"],
    "size": "number",
    "worst_tenth": "share",
    "gender": {"*": "share"},
    "per_speaker": {"*": {"covered": "share", "size": "number"}},
}
_SPENDING: Shape = {"epsilon": "number", "remaining": "number", "rounds": "whole"}

_ROUND_OUTCOMES = (
    "round",
    "sampled",
    "newcomers",
    "unavailable",
    "dropped",
    "late",
    "refused",
    "used",
)
_POPULATION: Shape = {
    "voices": "text",
    "registered": "whole",
    "cohort": "whole",
    "asked": "whole",
    "rounds": [dict.fromkeys(_ROUND_OUTCOMES, "whole") | {"rss_mb": "number", "seconds": "number"}],
}

_RUN: Shape = {
    "corpus": {"name": "text", "clips": "whole", "speakers": "whole", "emotions": ["text"]},
    "protocol": {"name": "text", "folds": "whole", "enrolment": "text"},
    "seed": "whole",
    "engine": "text",
    "unit": "unit",
    "clients": "whole",
    "rounds": "whole",
    "model": {
        "kind": "text",
        "encoder": "text",
        "shared_parameters": "whole",
        "public_corpora": ["text"],
    },
    "accuracy": {
        "uar": "share",
        "wa": "share",
        "macro_f1": "share",
        "per_emotion": {"*": "share"},
        "confusion": [["whole"]],
        "per_fold": [{"fold": "text", "uar": "share", "n": "whole"}],
        "per_speaker": {"*": {"uar": "share", "n": "whole"}},
        "uar_interval?": ["share"],
        "by_round?": [{"round": "whole", "uar": "share", "per_fold?": {"*": "share"}}],
    },
    "baselines?": {"*": {"uar": "share"}},
    "calibration": {
        "before": _ERRORS,
        "after": _ERRORS,
        "abstention": {"coverage": ["share"], "selective_accuracy": ["share"]},
        "reliability?": {"before": _BINS, "after": _BINS},
        "reliability_by_emotion?": {"*": {"before": _BINS, "after": _BINS}},
        "intervals?": {"*": _INTERVALS},
        "per_speaker?": {"*": {"n": "whole", "before": _ERRORS, "after": _ERRORS}},
        "sets?": _SETS,
    },
    "fairness": {
        "gender": _GROUPS,
        "age": _GROUPS,
        "language": _GROUPS,
        "speaker": {"worst": "share", "p10": "share", "gini": "number"},
    },
    "privacy": {
        "unit": "unit",
        "epsilon": "number",
        "delta": "number",
        "utterance?": {
            "epsilon_max": "number",
            "epsilon_median": "number",
            "per_client": {"*": _SPENDING},
        },
        "user?": {"epsilon": "number"},
        "audit?": {"epsilon_lower": "number"},
    },
    "timing": {"*": "number"},
    "exclusions?": {"*": "whole"},
    "population?": _POPULATION,
}

_RELEASE: Shape = {
    "kind": "text",
    "round": "whole",
    "noise_multiplier": "number",
    "sample_rate": "number",
    "steps": "whole",
    "clip_norm": "number",
    "bands?": "whole",
    "spacing?": "whole",
    "epsilon_after": "number",
}
_ACCOUNT: Shape = {
    **_SPENDING,
    "delta": "number",
    "budget": {"epsilon": "number", "delta": "number"},
    "ledger_sha256": "text",
    "releases": [_RELEASE],
    "devices_with_equal_ledgers?": "whole",
}
_PRIVACY: Shape = {
    "unit": "unit",
    "epsilon": "number",
    "delta": "number",
    "neighbouring": "text",
    "sampling": "text",
    "participation?": {
        "rounds": "whole",
        "spacing": "whole",
        "most": "whole",
        "bands": "whole",
        "coefficients": ["number"],
    },
    "accountant": "text",
    "noise_multiplier": "number",
    "clip_norm": "number",
    "statement": "text",
    "assumptions": ["text"],
    "not_protected": ["text"],
    "user?": {
        "epsilon": "number",
        "delta": "number",
        "neighbouring": "text",
        "noise_multiplier": "number",
        "clip_norm": "number",
    },
    "tuned?": {"runs": "whole", "utterance?": "number", "user?": "number"},
    "folds": [
        {"name": "text", "clients": {"*": _ACCOUNT}, "server?": _ACCOUNT, "registered?": "whole"}
    ],
    "recompute": "text",
}

_BOUND: Shape = {
    "epsilon": "number",
    "epsilon_gaussian": "number",
    "mu": "number",
    "ceiling": "number",
    "trials": "whole",
}
_MEMBERSHIP_INFERENCE: Shape = {"auc": "share", "tpr": "share", "guesses": "whole"}
_ATTACKS: Shape = {
    "many_run?": _BOUND,
    "first_message?": _BOUND,
    "last_message?": _BOUND,
    "one_run?": {"epsilon": "number", "canaries": "whole", "guesses": "whole", "correct": "whole"},
    "many_run_user?": _BOUND,
    "membership": {"*": _MEMBERSHIP_INFERENCE},
    "speaker": {"*": {"*": "share"}},
    "gender?": {"*": {"*": "share"}},
    "gender_error?": {"*": {"*": "share"}},
    "gender_of?": {"folds": "whole", "users": "whole", "trials": "whole"},
    "inversion": {"*": "number"},
}
_AUDIT: Shape = {
    "unit": "unit",
    "epsilon": "number",
    "delta": "number",
    "seed": "whole",
    "confidence": "share",
    "fold": "text",
    "users": "whole",
    "rounds": "whole",
    "threat_model?": "text",
    "epsilon_lower": "number",
    "epsilon_lower_gaussian": "number",
    "holds": "any",
    "attacks": {"as_run": _ATTACKS, "noise_off?": _ATTACKS},
    "exact_normaliser_attack?": _BOUND,
}


def validate_run(run: object, *, name: str = "run.json") -> Json:
    """Check that what was read is a run of this schema.

    Args:
        run: What ``json.loads`` gave, whatever it is.
        name: What to call the file in messages.

    Returns:
        The same object, now known to be a run.

    Raises:
        MessageError: A foreign or damaged file, or one of another schema; says where and what.
    """
    checked = _validate(run, _RUN, name)
    size = len(checked["corpus"]["emotions"])
    confusion = checked["accuracy"]["confusion"]
    if size < 1 or len(confusion) != size or any(len(row) != size for row in confusion):
        raise MessageError(f"{name} is damaged: accuracy.confusion is not {size} by {size}")
    curve = checked["calibration"]["abstention"]
    if len(curve["coverage"]) != len(curve["selective_accuracy"]):
        raise MessageError(f"{name} is damaged: calibration.abstention has unequal columns")
    return checked


def validate_privacy(privacy: object, *, name: str = "privacy.json") -> Json:
    """Check that what was read is a privacy record of this schema; see :func:`validate_run`."""
    return _validate(privacy, _PRIVACY, name)


def validate_audit(audit: object, *, name: str = "audit.json") -> Json:
    """Check that what was read is an audit of this schema; see :func:`validate_run`."""
    return _validate(audit, _AUDIT, name)


def read_audit(folder: Path) -> Json | None:
    """The checked audit.json of a run folder, None where there is none."""
    if not (folder / "audit.json").exists():
        return None
    return validate_audit(_read(folder, "audit.json"), name=str(folder / "audit.json"))


def read_run(folder: Path) -> Json:
    """The checked run.json of a run folder; errors as in :func:`validate_run`."""
    return validate_run(_read(folder, "run.json"), name=str(folder / "run.json"))


def read_privacy(folder: Path) -> Json:
    """The checked privacy.json of a run folder; errors as in :func:`validate_privacy`."""
    return validate_privacy(_read(folder, "privacy.json"), name=str(folder / "privacy.json"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is either whole or not there.

    Raises:
        StorageError: The disk refuses; nothing has changed.
    """
    replace_text(path, dump_json(content))


def dump_json(content: Mapping[str, Any]) -> str:
    r"""JSON with stable numbers: 10 significant digits; NaN and infinity become null.

    Example:
        >>> dump_json({"uar": 0.1 + 0.2, "gap": float("nan")})
        '{\n "uar": 0.3,\n "gap": null\n}\n'
    """
    return json.dumps(to_plain_json(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def to_plain_json(value: Any) -> Any:  # noqa: ANN401  (whatever a run may hold)
    """The same in JSON's own types: arrays as lists, 10 digits, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): to_plain_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain_json(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


def _finite(value: object) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(folder: Path, name: str) -> object:
    """What a file of the run folder holds, unchecked."""
    path = folder / name
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SettingError(f"there is no {path}; name the folder that --out made") from None
    except OSError as error:
        raise SottovoceError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{path} is damaged: {error}; run the simulation again") from None
    return content


def _validate(content: object, shape: Shape, name: str) -> Json:
    """Schema first, then every key."""
    if not isinstance(content, dict) or "schema" not in content:
        raise MessageError(f'{name} is no file of Sottovoce: it holds no "schema"')
    schema = content["schema"]
    if not _LEAVES["whole"](schema) or schema < 1:
        raise MessageError(f"{name} is damaged: schema is {schema!r}, not a whole number from 1")
    if schema > SCHEMA_VERSION:
        raise MessageError(
            f"{name} has schema {schema}; this Sottovoce reads {SCHEMA_VERSION}: install a newer "
            "one"
        )
    if schema < SCHEMA_VERSION:
        raise MessageError(
            f"{name} has schema {schema}, of an earlier release; this Sottovoce reads "
            f"{SCHEMA_VERSION}: run the simulation again, or read it with the release that wrote it"
        )
    _match(content, shape, "", name)
    return content


def _match(value: object, shape: Shape, where: str, name: str) -> None:
    """Raise ``MessageError`` unless ``value`` has the shape."""
    if isinstance(shape, str):
        if not _LEAVES[shape](value):
            raise MessageError(
                f"{name} is damaged: {where} is {str(value)[:60]!r}; it must be "
                f"{_LEAF_NAMES[shape]}"
            )
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise MessageError(f"{name} is damaged: {where} must be a list")
        for index, item in enumerate(value):
            _match(item, shape[0], f"{where}[{index}]", name)
    else:
        _match_keys(value, shape, where, name)


def _match_keys(value: object, shape: dict[str, Shape], where: str, name: str) -> None:
    """The same for an object: named keys, or any key under "*"."""
    if not isinstance(value, dict):
        raise MessageError(f"{name} is damaged: {where or 'it'} must be an object")
    wanted = dict.fromkeys(value, shape["*"]) if "*" in shape else shape
    for key, inner in wanted.items():
        plain = key if "*" in shape else key.removesuffix("?")
        here = f"{where}.{plain}" if where else plain
        if plain in value and (value[plain] is not None or plain == key):
            _match(value[plain], inner, here, name)
        elif plain == key:
            raise MessageError(f"{name} is damaged: {here} is missing")
