"""The table that ends a run."""

from collections.abc import Sequence
from pathlib import Path

from sottovoce.simulations.results.schema import RunRecord, Table

SAMPLES = ("angry", "sad", "neutral")
"""Emotions of the recordings that a run over made-up voices ends with."""
_SAMPLE_VOICE = 3  # of a population of its own: no user is it


def summarise_run(run: RunRecord, out: Path) -> list[str]:
    """A run in a dozen lines of plain text."""
    accuracy, calibration, privacy = run["accuracy"], run["calibration"], run["privacy"]
    before, after = calibration["before"], calibration["after"]
    corpus = run["corpus"]
    chance = 1 / len(corpus["emotions"])
    baselines = run.get("baselines") or {}
    rows = [
        ("corpus", f"{corpus['name']}: {corpus['clips']} clips, {corpus['speakers']} speakers"),
        ("protocol", f"{run['protocol']['name']}, enrolment {run['protocol']['enrolment']}"),
        ("model", f"{run['model']['kind']} on {run['model']['encoder']}, {run['rounds']} rounds"),
        ("privacy", _privacy_line(privacy)),
        ("UAR", f"{accuracy['uar']:.3f} (chance {chance:.3f}), folds {_fold_range(accuracy)}"),
        ("UAR by round", _curve_ends(accuracy)),
        *((f"UAR {name}", f"{line['uar']:.3f}") for name, line in baselines.items()),
        ("worst speaker", f"{run['fairness']['speaker']['worst']:.3f}"),
        ("ECE", f"{before['ece']:.3f} -> {after['ece']:.3f} with users' heads"),
        ("NLL", f"{before['nll']:.3f} -> {after['nll']:.3f}"),
        ("time", f"{run['timing']['wall_s']:.0f} s"),
        ("report", str(out / "report.html")),
        ("privacy page", str(out / "privacy.html")),
    ]
    return _align(rows)


def recognise_samples(out: Path) -> list[str]:
    """Let a run's model answer about recordings of a made-up voice that it never heard.

    Args:
        out: The folder of a run over made-up voices; gets ``samples/`` with the recordings.

    Returns:
        A heading, and a line for each: its file, named by the emotion that is acted, and what was
        answered, right or wrong.
    """
    from sottovoce.client.recognition.recogniser import Recogniser
    from sottovoce.simulations.corpora.synthetic.sample_recordings import write_sample

    recogniser = Recogniser.open(out / "model")
    folder = out / "samples"
    folder.mkdir(exist_ok=True)
    rows = []
    for number, acted in enumerate(SAMPLES):
        path = folder / f"{acted}.wav"
        write_sample(path, emotion=acted, seed=_SAMPLE_VOICE, utterance=number)
        said = recogniser.predict(path)
        named = f"{said.emotion}, confidence {said.confidence:.2f}"
        rows.append((str(path), named if said.emotion else f"no emotion named: {said.abstention}"))
    return ["", "a voice that no device has heard yet:", *_align(rows)]


def _align(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names and texts in two columns."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _curve_ends(accuracy: Table) -> str:
    """What training taught: the first round beside the last, as the mean of folds."""
    first, last = accuracy["by_round"][0], accuracy["by_round"][-1]
    return f"{first['uar']:.3f} after the first, {last['uar']:.3f} after the last"


def _privacy_line(privacy: Table) -> str:
    """The promise in a line."""
    if privacy["epsilon"] is None:
        return "none: this run protects nothing"
    spent = {unit: privacy[unit] for unit in ("utterance", "user") if unit in privacy}
    # Every device has its own ledger, so utterances have a maximum; a user has the server's.
    most = {"utterance": "epsilon_max", "user": "epsilon"}
    return "; ".join(
        f"one {unit}: epsilon {one[most[unit]]:.2f} of {privacy['epsilon']:g} spent "
        f"at delta {one.get('delta', privacy['delta']):g}"
        for unit, one in spent.items()
    )


def _fold_range(accuracy: Table) -> str:
    """Lowest and highest fold."""
    folds = [fold["uar"] for fold in accuracy["per_fold"]]
    return f"{min(folds):.3f} to {max(folds):.3f}"
