"""The two functions of the public face: run a simulation, verify a run.

The classes of the public face, ``Recogniser``, ``Device`` and ``UserDevice``, are the client's own.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.simulations.scenario.loading import load_scenario, vary_scenario
from sottovoce.simulations.scenario.scenario import Scenario

if TYPE_CHECKING:
    from sottovoce.simulations.results.schema import RunRecord
    from sottovoce.simulations.verification.recompute import RunVerification

__all__ = ["simulate", "verify"]


def simulate(
    scenario: str | Path | Scenario | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    model: str | None = None,
    **settings: object,
) -> "RunRecord":
    """Run a federated simulation and write its run folder.

    Args:
        scenario: A scenario's name such as ``demo``, a ``.toml`` file, or a scenario; None begins
            with the defaults and needs ``corpus``.
        out: The run folder; new or empty, unless resumed. None is ``runs/NAME-SEED``.
        resume: Whether to go on with a run that was interrupted.
        model: Kind of the shared model, such as ``linear`` or ``tcn``; None is the scenario's.
        settings: Settings that replace the scenario's, named as in its file, such as
            ``epsilon=4`` or ``rounds=8``.

    Returns:
        The run record, as in ``run.json``: ``accuracy``, ``calibration``, ``privacy`` and more.

    Raises:
        SettingError: An unknown setting, or one that makes no sense.
        SottovoceError: Bad input or a full disk; the message says the way out.

    >>> run = simulate("scenario.toml", epsilon=4, out="runs/small")
    >>> run["privacy"]["unit"], run["privacy"]["epsilon"]
    ('utterance', 4.0)
    """
    from sottovoce.simulations.runs import simulation

    base = load_scenario(str(scenario)) if isinstance(scenario, (str, Path)) else scenario
    settled = vary_scenario(base, settings, model=model)
    name = Path(scenario).stem if isinstance(scenario, (str, Path)) else settled.data.corpus
    folder = Path("runs") / f"{name}-{settled.run.seed}" if out is None else Path(out)
    return simulation.simulate(settled, folder, resume=resume)


def verify(run_folder: str | Path) -> "RunVerification":
    """Recompute every epsilon of a run from its ledgers, by two independent accountants.

    Args:
        run_folder: What :func:`simulate`, or ``sottovoce simulate --out``, wrote.

    Returns:
        The verification: ``is_consistent`` says whether the run's privacy record agrees with its
        ledgers, ``report_lines()`` what was computed, in words.

    Raises:
        SettingError: The folder holds no run.
        SottovoceError: Its privacy record is damaged or of another release.

    >>> verification = verify("runs/demo")
    >>> verification.is_consistent
    True
    >>> verification.report_lines()[-1]
    'all ledgers agree with privacy.json'
    """
    from sottovoce.simulations.verification.recompute import verify_run

    return verify_run(Path(run_folder))
