"""A simulated run: over speakers of a corpus, or over a synthetic population."""

from pathlib import Path

from sottovoce.shared.folder_claims import claim_folder
from sottovoce.simulations import engines
from sottovoce.simulations.data.loading import OnMessage, OnProgress
from sottovoce.simulations.population.run import simulate_population
from sottovoce.simulations.results.schema import RunRecord
from sottovoce.simulations.runs.progress import OnStatus
from sottovoce.simulations.runs.speaker_run import simulate_speakers
from sottovoce.simulations.scenario.scenario import Scenario


def simulate(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
    on_status: OnStatus = lambda _status: None,
) -> RunRecord:
    """Run a scenario and write its run folder.

    Args:
        scenario: Settled.
        out: The run folder; must be new or empty, unless resumed.
        resume: Whether to go on with a run that was interrupted.
        address: Of the Ray cluster to run on; a fact of the machines, not of the run.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).
        on_status: Takes the progress of the run, after each round and each fold.

    Returns:
        Content of run.json.

    Raises:
        FolderInUseError: Another process works in the run folder; names it.
        SottovoceError: Bad input, a full disk, a broken promise: each with its way out.
    """
    engines.check_address(scenario.run.engine, address)
    with claim_folder(out):
        if scenario.population:
            return simulate_population(
                scenario,
                out,
                resume=resume,
                on_message=on_message,
                on_progress=on_progress,
                on_status=on_status,
            )
        return simulate_speakers(
            scenario,
            out,
            resume=resume,
            address=address,
            on_message=on_message,
            on_progress=on_progress,
            on_status=on_status,
        )
