"""A pretraining result is the same whether it is learned or found in the cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.features.fingerprint import hash_sources
from sottovoce.simulations.data import fold_inputs, loading, pretraining, pretraining_cache
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.data.loading import load_corpus, load_public_corpora
from sottovoce.simulations.scenario.loading import load_scenario

Make = Callable[..., FoldInputs]


@pytest.fixture
def make(
    make_scenario: Any, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Make:
    """Makes the inputs of a variation of the tiny run, in a cache of this test."""
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    count = iter(range(100))

    def inputs(said: list[str] | None = None, **changes: object) -> FoldInputs:
        path = tmp_path / "scenario.toml"
        make_scenario(path, tiny_run.users, changes.pop("public", tiny_run.public), **changes)
        scenario = load_scenario(str(path))
        data = scenario.data
        with FeatureCache(loading.cache_folder()) as cache:
            loaded = load_corpus(data, cache, lambda _: None, lambda *_: None)
        public = load_public_corpora(scenario.data, loaded, lambda _: None, lambda *_: None)
        on_message = (said if said is not None else []).append
        folder = tmp_path / str(next(count))
        return pretraining.build_fold_inputs(
            scenario.plan_settings,
            loaded,
            public,
            folder,
            on_message,
            seed=scenario.run.seed,
            use_warm_start=bool(data.public),
        )

    return inputs


def _same(one: FoldInputs, other: FoldInputs) -> bool:
    """Bit for bit."""
    tensors = [
        (one.projection.mean, other.projection.mean),
        (one.projection.matrix, other.projection.matrix),
        (one.initial_weights, other.initial_weights),
        *(
            (getattr(one.speaker_statistics, name), getattr(other.speaker_statistics, name))
            for name in one.speaker_statistics.__dataclass_fields__
        ),
    ]
    files = [made.held_out_file and made.held_out_file.read_bytes() for made in (one, other)]
    return all(torch.equal(*pair) for pair in tensors) and files[0] == files[1]


def _never(*_: object, **__: object) -> Any:
    raise AssertionError("it was learned again")


def test_it_is_found_as_it_was_learned(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make()
    monkeypatch.setattr(pretraining, "pretrain", _never)

    again = make()
    other_seed = make(seed=5, epsilon=2.0)

    assert _same(first, again)
    assert _same(first, other_seed)
    assert first.model_spec == again.model_spec


@pytest.mark.parametrize(
    "change", [{"enrolment": "none"}, {"encoder": "whisper-tiny-en"}, {"data_changed": True}]
)
def test_what_decides_it_is_part_of_its_name(
    make: Make, make_corpus: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    first = make()
    if change.pop("data_changed", False):
        change["public"] = make_corpus(tmp_path / "other", speakers=6, clips=5, hertz=101.1)

    assert not _same(first, make(**change))


def test_damage_is_noticed_and_learned_anew(make: Make, tmp_path: Path) -> None:
    first = make()
    (path,) = (tmp_path / "cache" / "learned").iterdir()
    good = path.read_bytes()
    for bad in (b"", good[:100], good[:-1], good[:-4] + b"\0\0\0\1"):
        path.write_bytes(bad)
        assert _same(first, make())
        assert path.read_bytes() == good


def test_what_was_left_out_is_said_again(
    make: Make, make_corpus: Any, write_wav: Any, tmp_path: Path
) -> None:
    public = make_corpus(tmp_path / "public", speakers=6, clips=5, hertz=97.3)
    write_wav(public / "s00_00.wav", level=0.0)
    said: list[list[str]] = [[], []]

    first, again = (make(lines, public=public) for lines in said)

    assert _same(first, again)
    assert ["left out: s00_00.wav" in line for line in said[1]] == [True]


def test_a_disk_that_refuses_costs_time_and_no_more(make: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "learned").write_text("in the way")

    assert _same(make(), make())


def test_nothing_is_found_under_another_name(tmp_path: Path) -> None:
    assert pretraining_cache.load_result(tmp_path, _key({"a": 1})) is None
    assert _key({"a": 1}) != _key({"a": 2})


def _key(facts: dict[str, object], learned_by: str = fold_inputs.__name__) -> str:
    return pretraining_cache.cache_key(facts, learned_by=learned_by, called_by=pretraining.__name__)


def test_the_code_that_learns_counts_and_other_code_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "teacher"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "learn.py").write_text("from teacher import steps\n")
    for name in ("steps", "other"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def key() -> str:
        hash_sources.cache_clear()
        return _key({}, "teacher.learn")

    before = key()
    (package / "other.py").write_text("# edited")
    assert key() == before
    (package / "steps.py").write_text("# edited")
    assert key() != before


def test_what_pretraining_uses_is_found_through_imports() -> None:
    counted = hash_sources(fold_inputs.__name__).keys()

    assert {
        "sottovoce.server.planning.public_pretraining",
        "sottovoce.shared.models.layers",
        "sottovoce.shared.privacy.clipping",
        "sottovoce.shared.speaker.normalisation",
    } <= counted
    assert not [name for name in counted if ".scenario" in name or ".corpora" in name]
