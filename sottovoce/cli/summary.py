"""The table that ends a run."""

from pathlib import Path

from sottovoce.simulations.results.schema import RunRecord, Table


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
        *((f"UAR {name}", f"{line['uar']:.3f}") for name, line in baselines.items()),
        ("worst speaker", f"{run['fairness']['speaker']['worst']:.3f}"),
        ("ECE", f"{before['ece']:.3f} -> {after['ece']:.3f} with users' heads"),
        ("NLL", f"{before['nll']:.3f} -> {after['nll']:.3f}"),
        ("time", f"{run['timing']['wall_s']:.0f} s"),
        ("report", str(out / "report.html")),
        ("privacy page", str(out / "privacy.html")),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


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
