"""Timeline of a recording: its utterances with their emotions, and the files that others read."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sottovoce.client.recognition.prediction import Prediction
from sottovoce.shared.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One utterance of a recording.

    Attributes:
        start_s: Where it begins, in seconds from the beginning of the recording.
        end_s: Where it ends, after it begins.
        prediction: What was recognised in it; it may be an abstention.

    Raises:
        SettingError: An end that does not lie after the beginning.
    """

    start_s: float
    end_s: float
    prediction: Prediction

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            raise SettingError(
                f"an utterance from {self.start_s:g} to {self.end_s:g} s; it must end after it "
                "begins, and begin at 0 or later"
            )

    @property
    def label(self) -> str:
        """The emotion; for an abstention ``?``, with the likeliest one where there is any."""
        if self.prediction.emotion is not None:
            return self.prediction.emotion
        # A question mark cannot be taken for an answer in a program that shows labels alone.
        chances = self.prediction.probabilities
        return f"? {max(chances, key=lambda name: chances[name])}" if chances else "?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    r"""Utterances of one recording, in order.

    Attributes:
        duration_s: Duration of the recording in seconds.
        utterances: They do not overlap.

    Example:
        >>> Timeline(duration_s=2.0, utterances=()).render("json")
        '{"duration_s": 2.0, "utterances": []}\n'
    """

    duration_s: float
    utterances: tuple[Utterance, ...]

    def render(self, file_format: str) -> str:
        """Write the timeline in one of the ``TIMELINE_FORMATS``.

        Args:
            file_format: ``json``; ``csv``, a row an utterance; ``audacity``, a label track; or
                ``textgrid``, as Praat reads it in its long text form.

        Raises:
            SettingError: Another format.
        """
        if file_format not in TIMELINE_FORMATS:
            raise SettingError(
                f"the format is {file_format!r}; it must be one of {', '.join(TIMELINE_FORMATS)}"
            )
        return TIMELINE_FORMATS[file_format](self)


def _to_json(timeline: Timeline) -> str:
    return json.dumps(_describe(timeline), ensure_ascii=False) + "\n"


def _describe(timeline: Timeline) -> dict[str, Any]:
    """The timeline as a JSON object; times keep milliseconds."""
    return {
        "duration_s": round(timeline.duration_s, 3),
        "utterances": [
            {"start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3)}
            | one.prediction.to_dict()
            for one in timeline.utterances
        ],
    }


def _to_csv(timeline: Timeline) -> str:
    """A row an utterance; the columns of probabilities are those of the model's emotions."""
    names = list(
        dict.fromkeys(name for one in timeline.utterances for name in one.prediction.probabilities)
    )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["start_s", "end_s", "emotion", "confidence", "set", "reason", *names])
    for one in timeline.utterances:
        said = one.prediction
        writer.writerow(
            [
                f"{one.start_s:.3f}",
                f"{one.end_s:.3f}",
                said.emotion or "",
                f"{said.confidence:.4f}",
                " ".join(said.prediction_set),
                said.reason,
                # An utterance that was not listened to has no chances, rather than chances of 0.
                *(
                    f"{said.probabilities[name]:.4f}" if said.probabilities else ""
                    for name in names
                ),
            ]
        )
    return file.getvalue()


def _to_audacity(timeline: Timeline) -> str:
    """Audacity's label track: beginning, end and label, between tabs."""
    rows = (f"{one.start_s:.6f}\t{one.end_s:.6f}\t{one.label}\n" for one in timeline.utterances)
    return "".join(rows)


def _to_textgrid(timeline: Timeline) -> str:
    """Praat's TextGrid, with a tier of emotions and a tier of confidence.

    Source: Praat manual, "TextGrid file formats".
    """
    # Praat asks intervals to fill a tier: pauses are intervals without a text.
    spans: list[tuple[float, float, Utterance | None]] = []
    reached = 0.0
    for one in timeline.utterances:
        if one.start_s > reached:
            spans.append((reached, one.start_s, None))
        spans.append((one.start_s, one.end_s, one))
        reached = one.end_s
    if reached < timeline.duration_s or not spans:
        spans.append((reached, timeline.duration_s, None))
    tiers: list[tuple[str, Callable[[Utterance], str]]] = [
        ("emotion", lambda one: one.label),
        ("confidence", lambda one: f"{one.prediction.confidence:.2f}"),
    ]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += ["xmin = 0", f"xmax = {timeline.duration_s:.6f}", "tiers? <exists>", "size = 2"]
    lines += ["item []:"]
    for number, (name, describe) in enumerate(tiers, start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"']
        lines += [f'        name = "{name}"', "        xmin = 0"]
        lines += [f"        xmax = {timeline.duration_s:.6f}"]
        lines += [f"        intervals: size = {len(spans)}"]
        for index, (start, end, spoken) in enumerate(spans, start=1):
            text = describe(spoken).replace('"', '""') if spoken else ""
            lines += [f"        intervals [{index}]:", f"            xmin = {start:.6f}"]
            lines += [f"            xmax = {end:.6f}", f'            text = "{text}"']
    return "\n".join(lines) + "\n"


TIMELINE_FORMATS: Final[Mapping[str, Callable[[Timeline], str]]] = {
    "json": _to_json,
    "csv": _to_csv,
    "audacity": _to_audacity,
    "textgrid": _to_textgrid,
}
"""Formats of timelines, by name."""
