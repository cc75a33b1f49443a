"""The owner's page in a browser: heard, corrected, withdrawn, accounted for, erased."""

import os
import re
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.client.device.device import Device
from sottovoce.client.recognition.prediction import Abstention
from sottovoce.client.service.page.page_files import FOLDER, load_page
from sottovoce.shared.audio import load_signal
from sottovoce.shared.errors import BudgetSpent
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core")) / "axe.min.js"
"""Of the npm package axe-core; without one, nothing but accessibility goes unchecked."""

ARGUMENTS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
GRADIENT = Release(
    kind=ReleaseKind.GRADIENT,
    mechanism=Mechanism.GAUSSIAN,
    run="autumn",
    round=3,
    noise_multiplier=3.0,
    sensitivity=1.0,
)


@pytest.fixture
def microphone(voice: np.ndarray, tmp_path: Path) -> Path:
    """A real clip where there are corpora, else a made-up voice, as a file of sound."""
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "corpora"
    corpora = Path(os.environ.get("SOTTOVOCE_CORPORA", beside))
    clips = sorted(corpora.glob("ravdess/audio/Actor_05/03-01-05-02-*"))
    sound = np.asarray(load_signal(clips[0]).waveform) if clips else voice
    with wave.open(str(tmp_path / "microphone.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((sound * 32_767).astype("<i2").tobytes())
    return tmp_path / "microphone.wav"


@pytest.fixture
def page(microphone: Path) -> Iterator[Any]:
    """A page of a phone; its ``log`` has faults, its ``hosts`` whom it asked."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install one, and it is driven here")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[*ARGUMENTS, f"--use-file-for-fake-audio-capture={microphone}"],
        )
        made = browser.new_page(viewport={"width": 390, "height": 844}, locale="en-GB")
        made.set_default_timeout(20_000)
        made.log, made.hosts = [], set()
        made.on("console", lambda one: made.log.append(one.text) if one.type == "error" else None)
        made.on("pageerror", lambda error: made.log.append(str(error)))
        made.on("request", lambda one: made.hosts.add(re.split("[/:]+", one.url)[1]))
        yield made
        browser.close()


def check_accessibility(page: Any) -> None:
    """No violation that axe-core knows of, where it is at hand."""
    if AXE.is_file():
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def test_an_owner_is_heard_corrects_withdraws_and_erases(make_service: Any, page: Any) -> None:
    service = make_service()
    folder = service.session.folder
    with service.running() as port:
        page.goto(f"http://127.0.0.1:{port}/#key={service.access.issue_key()}")
        for purpose in ("recognise", "personalise", "contribute"):
            page.click(f"#switch-{purpose}[aria-checked=false]")
            page.wait_for_selector(f"#switch-{purpose}[aria-checked=true]")
        assert "key=" not in page.url
        check_accessibility(page)

        page.click("text=Start listening")
        page.click("#listen")
        page.click(".moments button")
        check_accessibility(page)
        page.click("dialog .chip >> text=angry")
        page.wait_for_selector("text=Learned: angry")
        page.click("dialog >> text=Close")
        page.click("text=Stop listening")
        assert [one.emotion for one in service.session.user_device.list_recordings()] == ["angry"]

        Device.open(folder).book_in_advance("gradient", "00" * 32, GRADIENT)
        page.click("nav >> text=Privacy")
        spent = page.wait_for_selector("meter").get_attribute("aria-label")
        share = service.session.user_device.privacy().budgets[0].epsilon_spent / 8
        assert spent == f"{share:.0%} used, {1 - share:.0%} left".replace("%", " %")
        assert "autumn, round 3" in page.inner_text(".log")
        check_accessibility(page)
        page.click("#switch-contribute")
        page.wait_for_selector("#switch-contribute[aria-checked=false]")
        with pytest.raises(BudgetSpent, match="does not consent to contribute"):
            Device.open(folder).book_in_advance("more", "00" * 32, GRADIENT)

        page.click("nav >> text=Settings")
        page.click("text=Deutsch")
        page.wait_for_selector("text=Einstellungen")
        check_accessibility(page)
        page.click("text=English")
        page.click("nav >> text=Data")
        page.click("text=Forget >> nth=-1")
        page.wait_for_selector("text=Nothing is kept of you yet")
        page.click("#erase")
        page.fill("#erase-name", "ada")
        page.click("#erase-sure")
        page.wait_for_selector("h1 >> text=Erased")
        assert not folder.exists()
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")

    assert page.log == []
    assert page.hosts == {"127.0.0.1"}
    page.reload()  # the service is gone, and the shell says what to do
    page.wait_for_selector("h1 >> text=Open your page")


def test_every_file_of_the_page_is_served_and_nothing_else(shared_service: Any) -> None:
    for path, file in load_page().items():
        answer = shared_service.client.get(path)
        assert (answer.content, answer.headers["content-type"]) == (file.content, file.media_type)
        again = shared_service.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    for path in ("/page_files.py", "/words/../../page_files.py", "/%2e%2e/page_files.py"):
        assert shared_service.client.get(path).status_code == 404


def test_the_page_has_no_script_or_style_of_its_own_and_asks_nobody_else() -> None:
    for path in FOLDER.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text), path
    worker = (FOLDER / "service-worker.js").read_text(encoding="utf-8")
    kept = set(re.findall(r'"(/[\w./-]*)"', worker.partition("];")[0]))
    assert kept == set(load_page()) - {"/service-worker.js"}
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<script(?! type=\"module\" src=)|<style|style=|onclick", html)


def test_both_languages_have_every_word() -> None:
    keys = [
        set(re.findall(r'"([\w. -]+)": "', (FOLDER / "words" / f"{name}.js").read_text("utf-8")))
        for name in ("en", "de")
    ]
    assert keys[0] == keys[1]
    code = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js"))
    used = set(re.findall(r'\bt\("([\w.-]+)"', code))
    used |= {f"kind.{kind}" for kind in ReleaseKind} | {f"mechanism.{one}" for one in Mechanism}
    used |= {f"unsure.{kind}" for kind in Abstention}
    assert used <= keys[0], used - keys[0]
