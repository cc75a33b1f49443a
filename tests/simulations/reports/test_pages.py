"""Contracts of the pages: whole, self-contained, accessible, escaped, the same every time."""

import html
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.shared.printable import clean_inserted_value
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.simulations.reports import figures, ledger_tables, pages, render_pages
from sottovoce.simulations.results import schema
from sottovoce.simulations.results.privacy_record import build_privacy_record
from sottovoce.simulations.results.schema import validate_privacy

Json = dict[str, Any]
Make = Callable[..., tuple[Json, Json]]
VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = [
    '<script>alert("1")</script>',
    "$x^2$ & 'y' {{ 7*7 }}",
    "李雷-\u202e-a-name-too-long-for-an-axis",
]


class Outline(HTMLParser):
    """What a page is made of; unbalanced tags raise."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        if self.open:
            raise ValueError(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            raise ValueError(f"{tag} closes what was not opened")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Both pages of a run, drawn once for each kind of run."""
    from_folder: dict[str, dict[str, str]] = {}

    def draw(make: Make, **kind: Any) -> dict[str, str]:
        key = json.dumps(kind)
        if key not in from_folder:
            folder = tmp_path_factory.mktemp("run")
            make(folder, **kind)
            from_folder[key] = {path.name: path.read_text("utf-8") for path in render_pages(folder)}
        return from_folder[key]

    return draw


KINDS: dict[str, Json] = {
    "full": {"clips": 16},
    "bare": {"clips": 16, "full": False, "unit": "none", "epsilon": None},
    "user": {"clips": 16, "unit": "user"},
    "evil": {"clips": 24, "speakers": EVIL},
    "one speaker": {"clips": 16, "speakers": ["s1"]},
    "many": {"clips": 8, "speakers": [f"s{n}" for n in range(130)], "full": False},
}


@pytest.mark.parametrize("name", ["report.html", "privacy.html"])
@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_whole_accessible_and_load_nothing(
    kind: str, name: str, make: Make, drawn: Callable[..., dict[str, str]]
) -> None:
    page = drawn(make, **KINDS[kind])[name]
    outline = Outline(page)
    ids = [value for _, attributes in outline.tags if (value := attributes.get("id"))]

    assert not outline.named("script")
    assert not [one for one in outline.named("a") if "://" in (one.get("href") or "")]
    assert not re.search(r"(src|srcset)=|@import|url\((?!#)|https?://", page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)
    assert len(outline.named("h1")) == 1
    assert len(outline.named("table")) == len(outline.named("caption"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in outline.named("svg"))
    assert "NaN" not in page
    assert "None" not in "".join(outline.text)


def test_the_first_screen_says_what_matters(
    make: Make, drawn: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    run, privacy = make(tmp_path, **KINDS["full"])
    first = drawn(make, **KINDS["full"])["report.html"].split("<h2>Accuracy</h2>")[0]

    assert f"{100 * run['accuracy']['uar']:.1f}\u202f%" in first
    assert "ε = 8" in first
    assert f"{100 * run['calibration']['before']['ece']:.1f}\u202f%" in first
    text = html.unescape(re.sub(r"<[^>]*>", "", first))
    assert all(line in text for line in privacy["not_protected"])


def test_no_promise_is_said_plainly(make: Make, drawn: Callable[..., dict[str, str]]) -> None:
    both = drawn(make, **KINDS["bare"])

    assert "No guarantee" in both["report.html"]
    assert "made no privacy promise" in both["privacy.html"]
    assert "ε = " not in both["report.html"]


def test_names_are_data(make: Make, drawn: Callable[..., dict[str, str]]) -> None:
    both = drawn(make, **KINDS["evil"])

    for page in both.values():
        assert "<script" not in page
        assert EVIL[0] in "".join(Outline(page).text)
        assert EVIL[1] in "".join(Outline(page).text)
    assert "$x^2$" in re.sub(r"<(?!/?text)[^>]*>", "", both["report.html"])


def test_hidden_characters_of_names_are_shown_on_pages_and_in_pictures(
    make: Make, drawn: Callable[..., dict[str, str]]
) -> None:
    speakers = ["ada\x1b[2J", "\u202eben", "cem\x9b", "dee\u2028", "eve\x00"]

    both = drawn(make, clips=8, speakers=speakers, full=False)

    for page in both.values():
        assert clean_inserted_value(page) == page
    assert r"ada\x1b[2J" in both["report.html"]


def test_the_same_json_gives_the_same_bytes(make: Make, tmp_path: Path) -> None:
    make(tmp_path, **KINDS["full"])
    first = [path.read_bytes() for path in render_pages(tmp_path)]

    assert [path.read_bytes() for path in render_pages(tmp_path)] == first


def test_every_ledger_stands_on_the_page(
    make: Make, drawn: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    _, privacy = make(tmp_path, **KINDS["full"])
    page = drawn(make, **KINDS["full"])["privacy.html"]

    for fold in privacy["folds"]:
        assert all(one["ledger_sha256"] in page for one in fold["clients"].values())
    assert privacy["recompute"] in page


def test_checks_pass_on_a_true_record_and_name_a_false_one(make: Make, tmp_path: Path) -> None:
    run, privacy = make(tmp_path, **KINDS["full"])
    account = next(iter(privacy["folds"][0]["clients"].values()))
    assert all(good for good, _ in ledger_tables.check_claims(privacy))

    account["epsilon"] = 8.4
    failed = [line for good, line in ledger_tables.check_claims(privacy) if not good]
    assert len(failed) == 2
    assert "Not so: No client passed its budget" in pages.render_privacy_record(run, privacy)

    account["epsilon"] = None
    assert len([line for good, line in ledger_tables.check_claims(privacy) if not good]) == 2


def test_a_falling_ledger_and_a_larger_delta_are_named(make: Make, tmp_path: Path) -> None:
    _, privacy = make(tmp_path, **KINDS["full"])
    account = next(iter(privacy["folds"][0]["clients"].values()))
    account["releases"][3]["epsilon_after"] = 99.0
    account["delta"] = 1e-3

    assert [good for good, _ in ledger_tables.check_claims(privacy)] == [True, False, True, False]


def test_a_servers_ledger_is_drawn(make: Make, tmp_path: Path) -> None:
    run, privacy = make(tmp_path, **KINDS["user"])
    for fold in privacy["folds"]:
        fold["server"] = next(iter(fold["clients"].values()))
        fold["clients"] = {}

    assert "the server" in pages.render_privacy_record(run, privacy)
    assert "Budget spent" in pages.render_report(run, privacy)


@pytest.mark.parametrize(("bands", "says"), [(3, "correlated across 3 rounds"), (1, "independent")])
def test_separated_rounds_are_named_with_their_noise(
    make: Make, tmp_path: Path, bands: int, says: str
) -> None:
    run, privacy = make(tmp_path, **KINDS["user"])
    assert "Rounds of one user" not in pages.render_privacy_record(run, privacy)
    privacy["participation"] = {
        "rounds": 12,
        "spacing": 4,
        "most": 3,
        "bands": bands,
        "coefficients": [1.0, 0.5, 0.375][:bands],
    }
    page = pages.render_privacy_record(run, validate_privacy(privacy))

    assert "at most 3 of 12, at least 4 from one to the next" in page
    assert says in page


def test_very_many_ledgers_are_cut_and_counted(make: Make, tmp_path: Path) -> None:
    run, privacy = make(tmp_path, **KINDS["full"])
    one = next(iter(privacy["folds"][0]["clients"].values()))
    privacy["folds"] = [{"name": "w", "clients": {f"c{n}": one for n in range(2_100)}}]

    assert "100 more are in privacy.json" in pages.render_privacy_record(run, privacy)


def test_sets_and_intervals_stand_on_the_page_where_they_were_measured(
    make: Make, tmp_path: Path
) -> None:
    run, _ = make(tmp_path, clips=16)
    page = render_pages(tmp_path)[0].read_text("utf-8")
    low, high = run["calibration"]["intervals"]["nll"]["difference"]
    covered = run["calibration"]["sets"]["covered"]

    assert f"{low:+.3g} to {high:+.3g}".replace("e-0", "e-") in page
    assert f"Sets hold the truth in {100 * covered:.1f}\u202f%" in page
    assert "area under the risk-coverage curve" in page
    for name in ("sets", "intervals", "per_speaker"):  # as earlier releases wrote it
        del run["calibration"][name]
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert "Sets hold the truth" not in render_pages(tmp_path)[0].read_text("utf-8")


def test_a_class_absent_and_a_fold_unmeasured_draw(make: Make, tmp_path: Path) -> None:
    run, privacy = make(tmp_path, **KINDS["full"])
    run["accuracy"]["confusion"][0] = [0] * 8
    run["accuracy"]["per_emotion"]["angry"] = None
    run["accuracy"]["by_round"][0]["uar"] = None
    run["accuracy"]["per_speaker"]["ravdess_01"]["uar"] = None

    Outline(pages.render_report(run, privacy))


@pytest.mark.parametrize("name", ["run.json", "privacy.json"])
def test_missing_corrupt_and_newer_files_are_named(name: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path, clips=8)
    path = tmp_path / name
    content = json.loads(path.read_text("utf-8"))

    path.write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(MessageError, match=f"{name}.*newer"):
        render_pages(tmp_path)
    path.write_text("{")
    with pytest.raises(MessageError, match=f"{name}.*damaged"):
        render_pages(tmp_path)
    path.unlink()
    with pytest.raises(SettingError, match=name):
        render_pages(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SottovoceError, match="nowhere"):
        render_pages(tmp_path / "nowhere")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sottovoce.simulations.reports.pages", None)
    with pytest.raises(SettingError, match="simulation"):
        render_pages(tmp_path)


def test_the_budget_figure_rises_where_devices_book_all_rounds_ahead() -> None:
    booked = {"epsilon": 8.0, "releases": [{"kind": "gradient", "round": 0, "epsilon_after": 8.0}]}
    kinds = [("label-counts", 0), ("gradient", 1), ("gradient", 2), ("head-statistics", 0)]
    lines = [
        {"kind": kind, "round": number, "epsilon_after": 2.0 * (place + 1)}
        for place, (kind, number) in enumerate(kinds)
    ]
    fold = {"clients": {"anna": booked}, "server": {"epsilon": 8.0, "releases": lines}}

    (account,) = ledger_tables.accounts_by_round(fold)

    assert ledger_tables.epsilon_by_round(account, 2) == [2.0, 4.0, 8.0, 8.0]
    assert "the server's ledger" in figures.plot_budget([{"name": "f", **fold}], 8.0)


@pytest.fixture(scope="module")
def guaranteed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run that protects utterances and users, from real ledgers."""
    folder = tmp_path_factory.mktemp("guaranteed")
    settings = recipe.default_recipe(unit="both")
    target = PrivacyTarget(unit="both", shares=settings.shares)
    bare = noise_calibration.plan_without_noise(
        settings, run="r", labels=("calm", "angry"), inputs=4, extractor="descriptors", rounds=3
    )
    plan = noise_calibration.add_noise(bare, target, settings.bounds)
    ledgers = []
    for name in ("ada", "server"):
        Ledger.create(folder / f"{name}.jsonl", name)
        ledgers.append(Ledger(folder / f"{name}.jsonl"))
        for number, release in enumerate(plan.all_releases()):
            ledgers[-1].book_release(f"r/{number}", release, ())
    record = build_privacy_record(
        target, plan, {"fold-1": {"ada": ledgers[0]}}, {"fold-1": ledgers[1]}, most_utterances=60
    )
    read: dict[str, Any] = json.loads(schema.dump_json(record))
    return read


def test_a_page_shows_the_whole_curve_and_every_adversary(
    guaranteed: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    run, _ = make(tmp_path)

    page = html.unescape(pages.render_privacy_record(run, guaranteed))

    for row in guaranteed["adversaries"]:
        assert f"{row['adversary']}</th>" in page
        assert f">{row['assumption']}</td>" in page
    assert "one removed and one added" in page
    assert "Trade-off function" in page
    assert page.count("<svg") == 3, "the budget, and a curve for each unit"
    curve = guaranteed["curves"]["utterance"]
    assert [group["changes"] for group in curve["groups"]] == [2, 5, 10, 60]
    assert "For all 60 utterances of the user who has most, ε is" in page
    assert "can become as good as certain" in page
    power = 1 - curve["tradeoff"]["beta"][curve["tradeoff"]["alpha"].index(0.05)]
    assert f"recognises a present one in at most {100 * power:.1f}" in page
    assert "0.994 to 13.69" in page
    assert "well below one over the number of users" in page


def test_a_page_of_an_earlier_run_leaves_the_curve_out(
    guaranteed: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    run, _ = make(tmp_path)
    older = {k: v for k, v in guaranteed.items() if k not in {"curves", "adversaries"}}

    page = pages.render_privacy_record(run, schema.validate_privacy(older))

    assert "Trade-off" not in page
    assert "Against whom" not in page
