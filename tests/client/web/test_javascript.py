"""The JavaScript package in Chromium: what Python says, it says too, and asks nobody else."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.cli import main
from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
from sottovoce.client.web.site import FOLDER, RUNTIME_FILES
from sottovoce.shared.audio import Signal
from sottovoce.shared.models.default_model import DEFAULT_MODEL
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.experiments.recognition.web import (
    find_chromium,
    open_page,
    predict_in_page,
)

RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", "node_modules/onnxruntime-web")) / "dist"
KEYS = {"nextStep": "next_step", "ownNormaliser": "own_normaliser"}
KEYS |= {"ownHead": "own_head", "ownSet": "own_set"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site with the packaged model."""
    if not (RUNTIME / RUNTIME_FILES[0]).is_file():
        pytest.skip("no onnxruntime-web: 'npm install onnxruntime-web', or set $ONNXRUNTIME_WEB")
    folder = tmp_path_factory.mktemp("web") / "site"
    assert main.main(["export", "--web", str(folder), "--runtime", str(RUNTIME)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Any]:
    """The site's page in Chromium; its ``hosts`` are whom it asked."""
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine: install one, and it is driven here")
    pytest.importorskip("playwright.sync_api")
    with open_page(site) as opened:
        opened.hosts = set()
        opened.on("request", lambda one: opened.hosts.add(re.split("[/:]+", one.url)[1]))
        yield opened


def _sounds() -> dict[str, Signal]:
    """Speech of every kind that takes another way, and what is no speech."""
    clip = open_corpus("synthetic", "speakers=1,clips=1,seed=5").clips[0].load_signal()
    voice = np.tile(clip.waveform, 4)[:40_000]
    rng = np.random.default_rng(0)
    padded = np.pad(voice, 12_000) + 1e-3 * rng.standard_normal(64_000).astype(np.float32)
    stereo = np.stack([voice, -voice], axis=1)
    return {
        "voice": Signal(voice, 16_000),
        "at 44.1 kHz": Signal(np.repeat(voice, 2), 44_100),
        "in noise": Signal(padded, 16_000),
        "in silence": Signal(np.pad(voice, 12_000), 16_000),
        "quiet": Signal(voice * np.float32(0.003), 16_000),
        "clipped": Signal(np.clip(voice * 20, -1, 1), 16_000),
        "cancelling": Signal(stereo, 16_000),
        "long": Signal(np.tile(padded, 4), 16_000),
        "short": Signal(voice[:3_000], 16_000),
        "silence": Signal(np.zeros(16_000), 16_000),
        "noise": Signal(0.1 * rng.standard_normal(32_000), 16_000),
        "tone": Signal(np.sin(np.arange(32_000) / 9) / 3, 16_000),
    }


@pytest.mark.slow
def test_it_answers_as_python_does(page: Any) -> None:
    recogniser = OnnxRecogniser.open()
    for name, signal in _sounds().items():
        expected = recogniser.predict(signal).to_dict()
        found = predict_in_page(page, signal)
        found = {KEYS.get(key, key): value for key, value in found.items()}

        chances = expected.pop("probabilities")
        assert found.pop("probabilities") == pytest.approx(chances, abs=1e-3), name
        assert found.pop("confidence") == pytest.approx(expected.pop("confidence"), abs=1e-3)
        # The loudest of two channels that cancel is chosen in Python before the sound is sent.
        if name == "cancelling":
            expected["quality"] = [one for one in expected["quality"] if one != "channels cancel"]
            expected["next_step"] = found["next_step"]
        assert found == expected, name
    assert page.hosts == {"127.0.0.1"}


@pytest.mark.slow
def test_it_gets_used_to_a_voice_as_python_does(page: Any) -> None:
    recogniser, voice = OnnxRecogniser.open(), _sounds()["voice"]
    recogniser.learn_voice(voice)
    predict_in_page(page, voice)
    samples = voice.waveform.tolist()

    count, found = page.evaluate(
        """async (samples) => {
          const one = window.recogniser;
          const count = await one.learnVoice(new Float32Array(samples), 16_000);
          return [count, await one.predict(new Float32Array(samples), 16_000)];
        }""",
        samples,
    )

    expected = recogniser.predict(voice).to_dict()
    assert count == 1
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-3)
    assert found["ownNormaliser"]


@pytest.mark.slow
def test_the_page_answers_to_a_file_in_words(page: Any, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "voice.wav", _sounds()["voice"].waveform, 16_000)

    page.wait_for_function("document.getElementById('state').textContent === 'Ready.'")
    page.set_input_files("#file", str(tmp_path / "voice.wav"))
    page.wait_for_function("document.getElementById('state').textContent === 'Done.'")

    assert re.match("Sounds |Not sure|Nobody", page.text_content("#sentence"))
    assert len(page.query_selector_all("#chances tr")) == len(OnnxRecogniser.open().labels)


def test_a_site_needs_its_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(DEFAULT_MODEL), "--web", str(tmp_path / "site")]

    assert main.main([*words, "--runtime", str(tmp_path)]) != 0

    assert "npm install onnxruntime-web" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_site_holds_the_model_and_all_code(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for name in RUNTIME_FILES:
        (runtime / name).write_bytes(b"")

    words = ["export", "--web", str(tmp_path / "site"), "--runtime", str(runtime)]
    assert main.main(words) == 0

    made = tmp_path / "site"
    for name in ("model.json", "model.onnx", "manifest.json"):
        assert (made / "model" / name).read_bytes() == (DEFAULT_MODEL / name).read_bytes()
    code = {path.name for path in (FOLDER / "src").iterdir()}
    assert {path.name for path in (made / "sottovoce").iterdir()} == code
    assert (made / "index.html").is_file()
    assert (made / "detector.onnx").is_file()
