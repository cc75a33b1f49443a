"""A run folder as large and as uneven as a real one, made through the record's own builders."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.simulations.evaluation.fairness.run_section import measure_fairness
from sottovoce.simulations.results import run_record
from sottovoce.simulations.results.run_record import Predictions
from sottovoce.simulations.results.schema import SCHEMA_VERSION

EMOTIONS = ("angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised")
FOLDS, ROUNDS = 6, 20
Json = dict[str, Any]


def predictions(speakers: list[str], clips: int, genders: bool) -> Predictions:
    """Predictions that look like a good recogniser's: over-confident, better for some."""
    rng = np.random.default_rng(11)
    size, classes = len(speakers) * clips, len(EMOTIONS)
    who = np.repeat(np.arange(len(speakers)), clips)
    labels = np.tile(np.arange(clips) % classes, len(speakers))
    skill = rng.normal(2.6, 0.6, len(speakers))[who]
    skill -= 0.5 * (labels == 4) + 0.9 * (labels == 5)
    logits = rng.normal(size=(size, classes)) + skill[:, None] * np.eye(classes)[labels]
    logits[:, 1] += 0.8 * (labels == 5)
    sharp, soft = (np.exp(scale * logits) for scale in (4.5, 2.4))
    known = genders and len(speakers) > 1
    return Predictions(
        emotions=EMOTIONS,
        clips=[f"{speakers[w]}/{i}.wav" for i, w in enumerate(who)],
        speakers=[speakers[w] for w in who],
        folds=[f"fold-{1 + w * FOLDS // len(speakers)}" for w in who],
        labels=labels,
        before=sharp / sharp.sum(axis=1, keepdims=True),
        after=soft / soft.sum(axis=1, keepdims=True),
        genders=[("female", "male")[w % 2] for w in who] if known else (),
        ages=[(None, 24.0, 37.0, 52.0, 66.0)[w % 5] for w in who] if known else (),
        languages=["en"] * size if known else (),
        covered=rng.random(size) < 0.9,
        sizes=1 + rng.integers(3, size=size),
    )


def account(client: str, epsilon: float | None, rng: np.random.Generator) -> Json:
    """One ledger: a normaliser, then updates until the budget or the rounds are spent."""
    stop = ROUNDS - int(rng.random() < 0.15) * int(rng.integers(1, 6))
    rate = float(rng.uniform(0.18, 0.3))
    end = None if epsilon is None else epsilon * float(rng.uniform(0.93, 0.995))
    releases = []
    for number in range(stop + 1):
        spent = None if end is None else end * (0.25 + 0.75 * math.sqrt(number / stop))
        kind = "update" if number else "normaliser"
        release = {"kind": kind, "round": number, "noise_multiplier": 1.31 if number else 4.2}
        release |= {"sample_rate": rate if number else 1.0, "steps": 4 if number else 1}
        releases.append(release | {"clip_norm": 1.0, "epsilon_after": spent})
    digest = hashlib.sha256(f"{client} {epsilon} {rate}".encode()).hexdigest()
    return {
        "epsilon": end,
        "delta": 1e-5,
        "budget": {"epsilon": epsilon, "delta": 1e-5},
        "remaining": None if end is None or epsilon is None else epsilon - end,
        "rounds": stop,
        "ledger_sha256": digest,
        "releases": releases,
    }


def ledgers(scored: Predictions, unit: str, epsilon: float | None) -> Json:
    """privacy.json: in every fold the speakers that it does not test keep a ledger each."""
    rng = np.random.default_rng(5)
    tested = dict(zip(scored.speakers, scored.folds, strict=True))
    folds: list[Json] = []
    for fold in sorted(set(scored.folds)):
        trained = [name for name in tested if tested[name] != fold] or list(tested)
        clients = {} if unit == "none" else {n: account(n, epsilon, rng) for n in trained}
        folds.append({"name": fold, "clients": clients})
    statement = "What a device sends is (8, 1e-05)-differentially private for one utterance."
    return {
        "schema": SCHEMA_VERSION,
        "unit": unit,
        "epsilon": epsilon,
        "delta": None if epsilon is None else 1e-5,
        "neighbouring": "add or remove one utterance",
        "sampling": "Poisson, on the device",
        "accountant": "PLD (dp-accounting), discretisation 1e-4",
        "noise_multiplier": None if epsilon is None else 1.31,
        "clip_norm": None if epsilon is None else 1.0,
        "statement": statement if epsilon else "No differential privacy was used.",
        "assumptions": [
            "The device runs the code that its owner checked.",
            "The noise's generator cannot be predicted.",
            "Number of rounds, clip and noise are public and do not depend on anybody's data.",
        ],
        "not_protected": [
            "What is true of many people (population attributes).",
            "The fact of taking part.",
            "What the user's own screen shows.",
            "A person over many recordings.",
        ],
        "folds": folds,
        "recompute": "sottovoce audit runs/ravdess --ledgers",
    }


def make_run(
    folder: Path,
    *,
    speakers: list[str] | None = None,
    clips: int = 60,
    unit: str = "utterance",
    epsilon: float | None = 8.0,
    full: bool = True,
) -> tuple[Json, Json]:
    """Write run.json and privacy.json; ``full=False`` leaves out all that is optional."""
    names = [f"ravdess_{n:02d}" for n in range(1, 25)] if speakers is None else speakers
    scored = predictions(names, clips, genders=full)
    privacy = ledgers(scored, unit, epsilon)
    accuracy = run_record.accuracy_section(scored, seed=1, curve=curve(scored) if full else ())
    calibration = run_record.calibration_section(scored)
    if not full:
        del accuracy["uar_interval"], calibration["reliability"]
        del calibration["reliability_by_emotion"]
    uar = accuracy["uar"]
    sections: Any = {
        "schema": SCHEMA_VERSION,
        "corpus": {"name": "ravdess", "clips": len(scored.clips), "speakers": len(names)}
        | {"emotions": list(EMOTIONS)},
        "protocol": {"name": "ravdess8-6fold", "folds": FOLDS, "enrolment": "all"},
        "seed": 1,
        "engine": "local",
        "unit": unit,
        "clients": len(names),
        "rounds": ROUNDS,
        "model": {"kind": "linear", "encoder": "whisper-tiny-en", "shared_parameters": 1032}
        | {"public_corpora": ["cremad"] if full else []},
        "accuracy": accuracy,
        "calibration": calibration,
        "fairness": measure_fairness(scored),
        "privacy": run_record.privacy_section(privacy, audit=0.62 if full and epsilon else None),
        "timing": {"wall_s": 171.3, "rounds_per_s": 2.31, "client_rounds_per_s": 46.2}
        | {"feature_s": 64.0, "peak_rss_mb": 811.0},
        "baselines": {
            "central": {"uar": min(1, uar + 0.05), "wa": 0.8, "macro_f1": 0.79},
            "federated_no_privacy": {"uar": min(1, uar + 0.04), "wa": 0.79, "macro_f1": 0.78},
            "local_only": {"uar": uar - 0.3},
        }
        if full
        else None,
        "exclusions": {"silent": 1, "labels contradict each other": 6} if full else None,
    }
    run = run_record.assemble_run_record(sections)
    run_record.write_json(folder / "run.json", run)
    run_record.write_json(folder / "privacy.json", privacy)
    return run, privacy


def curve(scored: Predictions) -> list[Json]:
    """A learning curve that starts warm and saturates."""
    rng = np.random.default_rng(2)
    return run_record.learning_curve(
        {
            fold: [
                (r, float(0.73 - 0.3 * math.exp(-r / 5) + rng.normal(0, 0.008) + 0.02 * (i - 2.5)))
                for r in range(1, ROUNDS + 1)
            ]
            for i, fold in enumerate(sorted(set(scored.folds)))
        }
    )


@pytest.fixture
def make() -> Callable[..., tuple[Json, Json]]:
    """Writes a run folder; see :func:`make_run`."""
    return make_run
