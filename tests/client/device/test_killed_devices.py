"""Kill -9 and power cuts between all steps of a release: nothing leaves that is not booked.

A child process releases once and is killed before one of its calls to the system, after half of a
write, or after the last call; which calls there are is counted, not listed. After a call is before
the next one: nothing else changes a file. Three things may be found on the disk afterwards: all
that was written (kill -9), only what was synced (a power cut), or that with an anchor as old as can
be. Whatever is found, the device must open, know of all that left, and release again.
"""

import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.device.vault import FileVault
from sottovoce.client.device.vault_anchor import VaultAnchor
from sottovoce.shared import atomic_files
from sottovoce.shared.errors import BudgetSpent, SottovoceError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.hash_chain import Anchor
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind

DELTA = 1e-5
SIMULATED = DeviceProfile(
    user="ada",
    budgets=(PrivacyBudget(epsilon=50.0, delta=DELTA),),
    labels=("angry", "sad"),
    simulated_seed=7,
)
REAL = replace(SIMULATED, simulated_seed=None)
VALUES = 5
CALLS = ("open", "write", "fsync", "close", "replace", "rename", "truncate", "unlink", "pwrite")
WRITES = ("write", "pwrite", "file.write")
AFTERMATHS = ("kill", "power cut", "power cut, old anchor")

Report = Callable[[bytes, Tensor | None], None]
Work = Callable[[Path, Report], None]


def release(number: int = 9) -> Release:
    """One round's gradients."""
    return Release(
        kind=ReleaseKind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="run",
        round=number,
        noise_multiplier=3.0,
        sensitivity=1.0,
    )


def draw(random: Randomness) -> Tensor:
    """A release of pure noise."""
    return random.noise_source.sample_noise((VALUES,), 1.0).float()


def give(device: Device, report: Report) -> Tensor:
    """Ask a device for the release that all of this is about, and hand it out."""

    def make(random: Randomness) -> Tensor:
        report(b"D", None)
        return draw(random)

    value = device.book_and_release("round-9", "a" * 64, release(), make)
    report(b"V", value)
    return value


def honest(folder: Path, report: Report) -> None:
    """What a device does."""
    give(Device.open(folder), report)


# --- a process that dies -----------------------------------------------------------------------


@dataclass
class Death:
    """Where a process dies.

    Attributes:
        step: Which call to the system, from 0; -1 for none.
        how: ``before`` it, ``after`` it, or after half of what it was to write (``short``).
    """

    step: int = -1
    how: str = "before"


@dataclass
class Disk:
    """What a power cut would leave of the ledger, written beside the device at every sync."""

    ledger: Path
    durable: Path
    handles: dict[int, Path] = field(default_factory=dict)
    synced: dict[Path, bytes] = field(default_factory=dict)
    moved: bytes | None = None

    def note(self, call: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Follow one call that was done."""
        if call == "open":
            self.handles[result] = Path(arguments[0])
        elif call == "replace" and Path(arguments[1]) == self.ledger:
            self.moved = self.synced.get(Path(arguments[0]), b"")
        elif call == "fsync":
            self._sync(self.handles[arguments[0]])

    def _sync(self, path: Path) -> None:
        if path.is_file():
            self.synced[path] = path.read_bytes()
            if path == self.ledger and self.durable.exists():
                self.durable.write_bytes(self.synced[path])
        elif path == self.ledger.parent:  # only now names are durable too
            last = self.synced.get(self.ledger) if self.moved is None else self.moved
            if last is not None:
                self.durable.write_bytes(last)


class Steps:
    """Every call that changes a file, counted; the process dies at one of them."""

    def __init__(self, death: Death, disk: Disk) -> None:
        self.death, self.disk = death, disk
        self.names: list[str] = []
        self.unseen: list[str] = []
        self._inside = False

    def install(self) -> None:
        """Stand between this process and the system, for good: it is about to die."""
        for call in CALLS:
            setattr(os, call, self._wrapped(call, getattr(os, call)))
        real = os.fdopen
        os.fdopen = lambda *a, **k: _File(self, real(*a, **k))  # type: ignore[assignment,misc]
        sys.addaudithook(self._audit)

    def step(self, call: str, do: Callable[..., Any], *arguments: Any) -> Any:
        """Do one call, unless this is where the process dies."""
        here = len(self.names) == self.death.step
        self.names.append(call)
        if here and self.death.how == "before":
            _die()
        if here and self.death.how == "short":
            do(*arguments[:-1], arguments[-1][: len(arguments[-1]) // 2])
            _die()
        with self._watched():
            result = do(*arguments)
            self.disk.note(call, arguments, result)
        if here:
            _die()
        return result

    def _wrapped(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return real(*arguments, **named)
            return self.step(call, lambda *positional: real(*positional, **named), *arguments)

        return wrapped

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Whatever changes a file without being a step would make these tests blind."""
        changes = event in ("os.rename", "os.remove", "os.truncate", "os.link")
        if event == "open" and not isinstance(arguments[0], int):
            changes = bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if changes and not self._inside:
            self.unseen.append(f"{event} {arguments}")


class _File:
    """A file of ``os.fdopen`` without a buffer, whose writes and end are steps."""

    def __init__(self, steps: Steps, file: Any) -> None:
        self._steps, self._file = steps, file

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.step("file.close", self._file.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        def write(part: bytes) -> None:
            self._file.write(part)
            self._file.flush()

        self._steps.step("file.write", write, data)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, work: Work, death: Death) -> tuple[int, bytes, bytes]:
    """Do the work in a child that dies; its wait status, its reports and its steps."""
    reports, steps = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        _child(folder, work, death, reports[1], steps[1])
    os.close(reports[1])
    os.close(steps[1])
    output, names = _all_of(reports[0]), _all_of(steps[0])
    return os.waitpid(child, 0)[1], output, names


def _child(folder: Path, work: Work, death: Death, reports: int, names: int) -> None:
    """Never returns."""
    status, write = 70, os.write
    try:
        disk = Disk(folder / "ledger.jsonl", folder.parent / "durable")
        steps = Steps(death, disk)

        def report(tag: bytes, value: Tensor | None) -> None:
            body = bytes(4 * VALUES) if value is None else value.numpy().tobytes()
            steps.step("report", write, reports, tag + body)

        steps.install()
        work(folder, report)
        write(names, "\n".join(steps.unseen or steps.names).encode())
        status = 71 if steps.unseen else 0
    finally:
        os._exit(status)


def _all_of(handle: int) -> bytes:
    with os.fdopen(handle, "rb") as file:
        return file.read()


# --- what is found afterwards -------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A device before the child touches it."""

    folder: Path
    earlier: int
    torn: bool


def prepare(folder: Path, facts: DeviceProfile, start: str) -> Start:
    """A device with no release, with one, or with one and a torn line."""
    yes = torch.ones(4, dtype=torch.bool)
    examples = Examples(
        features=torch.randn(4, 3),
        frames=torch.ones(4, dtype=torch.int64),
        labels=torch.arange(4) % 2,
    )
    device = Device.create(
        folder / "device",
        facts,
        LabelledFeatures(examples=examples, for_enrolment=yes, for_head=~yes, for_training=yes),
    )
    if start != "first":
        device.book_and_release("round-1", "a" * 64, release(1), draw)
    if start == "torn":
        with device.ledger.path.open("ab") as file:
            file.write(b'{"id": "run/round-2/aaaa", "n": 1, "pr')
    if device.ledger.path.exists():
        shutil.copy(device.ledger.path, folder / "durable")
    return Start(device.folder, earlier=int(start != "first"), torn=start == "torn")


def aftermath(start: Start, folder: Path, kind: str) -> Path:
    """The device as it is found, in a folder of its own."""
    found = Path(shutil.copytree(start.folder, folder / kind))
    durable = start.folder.parent / "durable"
    if kind != "kill":
        (found / "ledger.jsonl").unlink(missing_ok=True)
        for lost in found.glob("vault/outbox-*"):
            lost.unlink()
        if durable.exists():
            shutil.copy(durable, found / "ledger.jsonl")
    if kind == "power cut, old anchor":
        anchor = "ledger-anchor.sealed"
        shutil.copy(start.folder.parent / anchor, found / "vault" / anchor)
    return found


def breaches(start: Start, found: Path, reported: bytes, kind: str) -> list[str]:
    """All that must not be: the device opens, knows what left, and releases once more."""
    size = 1 + 4 * VALUES
    parts = [reported[at : at + size] for at in range(0, len(reported), size)]
    out = {part[1:] for part in parts if part[:1] == b"V"}
    anchor = VaultAnchor(FileVault.open(found / "vault"), required=True).read()
    torn = start.torn + _torn_again(found / "ledger.jsonl")
    try:
        device = Device.open(found)
    except SottovoceError as error:
        return [f"the device does not open: {error}"]
    wrong = [] if not parts else _unbooked(start, device, drawn=1, out=out)
    if parts and kind == "kill" and anchor != Anchor(releases=_held(device), head=_head(device)):
        wrong.append("the anchor was not written before something left")
    if start.torn and [one.kind for one in device.ledger.releases].count(ReleaseKind.TORN) != torn:
        wrong.append("a torn line was forgotten, or charged twice")
    if math.isinf(device.ledger.epsilon_spent(DELTA)):  # a torn first line counts as unprotected
        return wrong + _refuses(device)
    out.add(give(device, lambda *_: None).numpy().tobytes())
    return wrong + _unbooked(start, Device.open(found), drawn=1, out=out)


def _torn_again(ledger: Path) -> bool:
    """Whether there is another torn line behind one that was charged."""
    data = ledger.read_bytes() if ledger.exists() else b""
    return b'"torn-' in data and not data.endswith(b"\n")


def _held(device: Device) -> int:
    return len(device.ledger.releases)


def _head(device: Device) -> str:
    return device.ledger.head_hash


def _unbooked(start: Start, device: Device, *, drawn: int, out: set[bytes]) -> list[str]:
    """Whether more was drawn or left than the ledger holds."""
    left = [release()] * max(drawn, len(out)) + [release(1)] * start.earlier
    wrong = []
    if _held(device) < len(left):
        wrong.append(f"{len(left)} releases left or were drawn, {_held(device)} are booked")
    if device.ledger.epsilon_spent(DELTA) < accounting.compute_epsilon(left, DELTA):
        wrong.append("the ledger's epsilon is below that of what left")
    return wrong


def _refuses(device: Device) -> list[str]:
    """A device that may have released anything releases nothing more."""
    try:
        give(device, lambda *_: None)
    except BudgetSpent:
        return []
    return ["a device with an unprotected release went on"]


def search(
    folder: Path, facts: DeviceProfile, start: str, work: Work, *, until: str = "\n"
) -> tuple[int, dict[str, list[str]]]:
    """Die everywhere; how often that was, and what was found wrong, by where and how."""
    pristine = folder / "pristine"
    pristine.mkdir()
    prepare(pristine, facts, start)
    dry = _fresh(pristine, folder / "dry", start)
    status, _, names = run(dry.folder, work, Death())
    assert status == 0, f"the work fails, or writes files behind the steps' back: {names!r}"
    steps = names.decode().split("\n")
    deaths = [(step, "before") for step in range(len(steps))] + [(len(steps) - 1, "after")]
    deaths += [(step, "short") for step in range(len(steps)) if _tears(steps, step)]
    wrong = {}
    for step, how in deaths:
        if until in str(wrong):
            break
        here = _fresh(pristine, folder / f"{step}-{how}", start)
        status, reported, _ = run(here.folder, work, Death(step, how))
        assert os.WIFSIGNALED(status), (step, how, status)
        for kind in AFTERMATHS:
            found = breaches(here, aftermath(here, here.folder.parent, kind), reported, kind)
            if found:
                wrong[f"{how} {step} ({steps[step]}), {kind}"] = found
    return len(deaths), wrong


def _tears(steps: list[str], step: int) -> bool:
    """Whether a step may be half done; the anchor's write is a sector, which disks write whole."""
    sector = steps[step : step + 2] == ["write", "close"]
    return steps[step] in WRITES and not sector


def _fresh(pristine: Path, folder: Path, start: str) -> Start:
    """A copy of a prepared device, for one death."""
    shutil.copytree(pristine, folder)
    anchor = "ledger-anchor.sealed"
    shutil.copy(folder / "device" / "vault" / anchor, folder / anchor)
    return Start(folder / "device", earlier=int(start != "first"), torn=start == "torn")


@pytest.mark.parametrize("facts", [SIMULATED, REAL], ids=["simulated", "real"])
@pytest.mark.parametrize("start", ["first", "next", "torn"])
def test_no_death_ends_with_more_released_than_booked(
    tmp_path: Path, facts: DeviceProfile, start: str
) -> None:
    deaths, wrong = search(tmp_path, facts, start, honest)

    assert wrong == {}
    assert deaths >= 16


# --- and the same search finds what is wrong ----------------------------------------------------


def hasty(folder: Path, report: Report) -> None:
    """Hands out first and books then."""
    device = Device.open(folder)
    report(b"V", draw(Randomness(device.profile, "x")))
    device.ledger.book_release("run/round-9", release(), device.profile.budgets)


def drawn_first(folder: Path, report: Report) -> None:
    """Draws the noise before it books."""
    device = Device.open(folder)
    report(b"D", None)
    device.ledger.book_release("run/round-9", release(), device.profile.budgets)


def unsynced(folder: Path, report: Report) -> None:
    """Books without waiting for the disk."""
    sync, os.fsync = os.fsync, lambda _: None  # type: ignore[assignment]
    honest(folder, report)
    os.fsync = sync


def anchored_first(folder: Path, report: Report) -> None:
    """Writes the anchor before the line."""
    device = Device.open(folder)
    keeper = VaultAnchor(device.vault, required=True)
    keeper.write(Anchor(releases=_held(device) + 1, head="0" * 64))
    give(device, report)


def unanchored(folder: Path, report: Report) -> None:
    """Never writes an anchor."""
    VaultAnchor.write = lambda *_: None  # type: ignore[method-assign]
    honest(folder, report)


def in_two_steps(folder: Path, report: Report) -> None:
    """Takes a torn line away before its charge is written."""

    whole = atomic_files.replace_file

    def replace_file(path: Path, data: bytes, **how: Any) -> None:
        if how.get("expected_size") is None:  # not the ledger
            whole(path, data, **how)
            return
        line = data.rstrip(b"\n").rfind(b"\n") + 1
        os.truncate(path, line)
        atomic_files.append_to_file(path, data[line:])

    atomic_files.replace_file = replace_file
    honest(folder, report)


@pytest.mark.parametrize(
    ("work", "start", "complaint"),
    [
        (hasty, "next", "left or were drawn"),
        (drawn_first, "next", "left or were drawn"),
        (unsynced, "next", "left or were drawn"),
        (anchored_first, "next", "does not open"),
        (unanchored, "next", "anchor was not written"),
        (in_two_steps, "torn", "torn line was forgotten"),
    ],
)
def test_a_device_in_another_order_would_be_found(
    tmp_path: Path, work: Work, start: str, complaint: str
) -> None:
    _, wrong = search(tmp_path, SIMULATED, start, work, until=complaint)

    assert complaint in str(wrong)


def test_a_write_that_is_no_step_would_be_found(tmp_path: Path) -> None:
    def behind_the_back(folder: Path, report: Report) -> None:
        honest(folder, report)
        (folder / "note").write_bytes(b"x")

    prepare(tmp_path, SIMULATED, "next")

    assert os.waitstatus_to_exitcode(run(tmp_path / "device", behind_the_back, Death())[0]) == 71
