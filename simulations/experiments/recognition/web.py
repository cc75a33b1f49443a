"""Experiment on the JavaScript package beside Python, in Chromium: docs/results/web.md.

    sottovoce reproduce web --site site --corpora ../shared/corpora

``sottovoce export --web site`` writes the site. It needs Chromium and playwright. Clips are decoded
by Python, so that both hear the same samples. Time is the CPU's, of Chromium's process.
"""

import base64
import contextlib
import gzip
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.printable import print_error, print_lines
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.experiments.commands import build_parser

CORPORA: Final = ("ravdess", "cremad", "emodb")

_OPEN: Final = """async () => {
  const ort = await import("/runtime/ort.wasm.min.mjs");
  const { Recogniser } = await import("/sottovoce/index.js");
  window.recogniser = await Recogniser.open("/model/", { ort, detector: "/detector.onnx" });
}"""
_PREDICT: Final = """async ([text, rate]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return window.recogniser.predict(new Float32Array(bytes.buffer), rate);
}"""


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing of requests."""


def find_chromium() -> str | None:
    """Find the Chromium of this machine; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@contextlib.contextmanager
def open_page(site: Path) -> Iterator[Any]:
    """Serve a site on loopback, and open its page in Chromium.

    Args:
        site: What ``sottovoce export --web`` wrote.

    Yields:
        A page of playwright.

    Raises:
        SettingError: There is no site, no Chromium, or no playwright.
    """
    chromium = find_chromium()
    if chromium is None or not (site / "index.html").is_file():
        what = f"{site} holds no site" if chromium else "there is no Chromium on this machine"
        raise SettingError(f"{what}; install Chromium, and run 'sottovoce export --web {site}'")
    # Of the extra dev alone: nobody who only reads pages needs it.
    from playwright.sync_api import sync_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            yield page
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def predict_in_page(page: Any, signal: Signal) -> dict[str, Any]:  # noqa: ANN401
    """Predict with the JavaScript package, which the first call opens.

    Args:
        page: From :func:`open_page`.
        signal: A recording.

    Returns:
        The prediction, as JavaScript has it.
    """
    if not page.evaluate("() => Boolean(window.recogniser)"):
        page.evaluate(_OPEN)
    # The very bits, which numbers in JSON would take five times the room for.
    samples = base64.b64encode(signal.waveform.astype("<f4").tobytes()).decode()
    found: dict[str, Any] = page.evaluate(_PREDICT, [samples, signal.rate])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and write the figures and their page."""
    parser = build_parser("web", __doc__)
    parser.add_argument("--site", type=Path, default=Path("site"), help="the site's folder")
    parser.add_argument(
        "--corpora", type=Path, default=Path("../shared/corpora"), help="folder of the corpora"
    )
    parser.add_argument("--clips", type=int, default=100, help="clips of each corpus")
    arguments = parser.parse_args(argv)
    figures = arguments.out / "web.json"
    if not arguments.table:
        try:
            result = _compare(arguments.site, arguments.corpora, arguments.clips)
        except SottovoceError as error:
            print_error(error)
            return 1
        replace_text(figures, json.dumps(result, indent=1) + "\n")
    replace_text(arguments.out / "web.md", _page(json.loads(figures.read_text())))
    print_lines(f"written to {arguments.out / 'web.md'}")
    return 0


def _compare(site: Path, corpora: Path, count: int) -> dict[str, Any]:
    """Compare all corpora in one browser."""
    recogniser = OnnxRecogniser.open(site / "model")
    with open_page(site) as page:
        session = page.context.browser.new_browser_cdp_session()
        rows = {
            name: _compare_corpus(name, corpora, count, (recogniser, page, session))
            for name in CORPORA
        }
        version = page.context.browser.version
    return {"chromium": version, "corpora": rows, "bytes": _measure_bytes(site)}


def _compare_corpus(
    name: str, corpora: Path, count: int, tools: tuple[OnnxRecogniser, Any, Any]
) -> dict[str, Any]:
    """Compare evenly spread clips of one corpus, and take the time."""
    recogniser, page, session = tools
    clips = open_corpus(name, str(corpora / name)).clips
    signals = [clips[at].load_signal() for at in range(0, len(clips), max(1, len(clips) // count))]
    signals = signals[:count]
    # Not timed: the first prediction compiles and lays out memory.
    predict_in_page(page, signals[0])
    before = _renderer_seconds(session)
    found = [predict_in_page(page, signal) for signal in signals]
    spent = _renderer_seconds(session) - before
    pairs = [
        (one, recogniser.predict(signal).to_dict())
        for one, signal in zip(found, signals, strict=True)
    ]
    return {
        "clips": len(signals),
        "seconds": sum(signal.duration_s for signal in signals),
        "cpu_seconds": spent,
        "same_emotion": sum(a["emotion"] == b["emotion"] for a, b in pairs),
        "same_likeliest": sum(_likeliest(a) == _likeliest(b) for a, b in pairs),
        "same_set": sum(a["set"] == b["set"] for a, b in pairs),
        "same_abstention": sum(a["abstention"] == b["abstention"] for a, b in pairs),
        "answered": sum(b["emotion"] is not None for _, b in pairs),
        "largest_difference": max(map(_difference, *zip(*pairs, strict=True))),
    }


def _likeliest(answer: Mapping[str, Any]) -> str | None:
    chances = answer["probabilities"]
    return max(chances, key=lambda name: chances[name]) if chances else None


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest difference of a probability; 1 where only one of both guesses."""
    first, second = one["probabilities"], other["probabilities"]
    if set(first) != set(second):
        return 1.0
    return max((abs(first[name] - second[name]) for name in first), default=0.0)


def _renderer_seconds(session: Any) -> float:  # noqa: ANN401
    """CPU time of the processes that show pages, in seconds."""
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    return float(sum(one["cpuTime"] for one in found if one["type"] == "renderer"))


def _measure_bytes(site: Path) -> dict[str, dict[str, int]]:
    """Size of what a page loads, as it lies there and as gzip sends it."""
    groups = {"model": "model", "runtime": "runtime", "detector": "detector.onnx"}
    sizes: dict[str, dict[str, int]] = {}
    for path in sorted(site.rglob("*")):
        first = path.relative_to(site).parts[0]
        group = next((name for name, start in groups.items() if first == start), "code and page")
        if path.is_file() and path.suffix != ".md":
            size = sizes.setdefault(group, {"raw": 0, "gzip": 0})
            size["raw"] += path.stat().st_size
            size["gzip"] += len(gzip.compress(path.read_bytes(), 9, mtime=0))
    return sizes


def _page(result: Mapping[str, Any]) -> str:
    """The page for people."""
    rows = "".join(
        f"| {name} | {one['clips']} | {one['same_emotion']} | {one['same_likeliest']} | "
        f"{one['same_set']} | {one['same_abstention']} | {one['largest_difference']:.1e} | "
        f"{one['cpu_seconds'] / one['seconds']:.3f} |\n"
        for name, one in result["corpora"].items()
    )
    sizes = result["bytes"]
    lines = "".join(
        f"| {name} | {one['raw'] / 1e6:.2f} MB | {one['gzip'] / 1e6:.2f} MB |\n"
        for name, one in sizes.items()
    )
    total = {kind: sum(one[kind] for one in sizes.values()) / 1e6 for kind in ("raw", "gzip")}
    return (
        "# In the browser\n\n"
        "`sottovoce export --web site` and `sottovoce reproduce web --site site --corpora DIR`: "
        f"[the JavaScript package](../guides/browser.md) in Chromium {result['chromium']}, "
        "onnxruntime-web on one thread, beside `OnnxRecogniser` on the same samples, with the "
        "packaged model.\n\n"
        "Python's probabilities are rounded to six digits. The real-time factor is the CPU time of "
        "Chromium's page process a second of sound; other work went on beside it.\n\n"
        "| corpus | clips | same emotion or none | same likeliest | same set | same abstention | "
        "largest difference | real-time factor |\n|---|---|---|---|---|---|---|---|\n"
        f"{rows}\n## What a page loads\n\n"
        "| part | size | gzip |\n|---|---|---|\n"
        f"{lines}| all | {total['raw']:.2f} MB | {total['gzip']:.2f} MB |\n"
    )
