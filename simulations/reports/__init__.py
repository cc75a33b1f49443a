"""Rendering of a run's JSON as pages for people.

``render_pages`` writes the two pages of a run folder; ``model_card.render_card`` writes a model's
card. Jinja and Matplotlib are imported only when a page is rendered: a device or a server never
needs them.
"""

from pathlib import Path

from sottovoce.shared.errors import SettingError

__all__ = ["render_pages"]


def render_pages(run_folder: Path) -> tuple[Path, Path]:
    """Write report.html and privacy.html from the run.json and privacy.json of a run.

    The pages are self-contained: one file each, no script, no font, no network. The same JSON
    gives the same bytes.

    Args:
        run_folder: The folder that ``--out`` named.

    Returns:
        The paths of report.html and privacy.html.

    Raises:
        SettingError: No such files, or the extra ``simulation`` is not installed.
        MessageError: A file that is damaged, foreign or of a newer schema.
        SottovoceError: The folder cannot be written.
    """
    try:
        from sottovoce.simulations.reports.pages import write_pages
    except ImportError as error:
        # "from None": the reader needs the missing extra, not the traceback of an import.
        raise SettingError(
            f"{error.name} is not installed; reports need pip install 'sottovoce[simulation]'"
        ) from None
    return write_pages(Path(run_folder))
