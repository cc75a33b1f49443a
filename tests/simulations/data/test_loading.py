"""A recipe that does not go with a corpus is refused, or named, before features are computed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared.errors import SettingError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.models.losses import Loss
from sottovoce.simulations.data import loading
from sottovoce.simulations.data.loading import load_corpus
from sottovoce.simulations.scenario.settings import DataSettings

WriteWav = Callable[..., None]


class FeaturesAskedError(Exception):
    """What came next."""


def load(
    folder: Path, recipe: Recipe, emotions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Open two speakers with these emotions; what was said before features were asked for."""
    rows: list[str] = []
    said: list[str] = []
    for speaker in "ab":
        for number, emotion in enumerate(emotions):
            rows.append(f"{speaker}{number}.wav,{speaker},{emotion}")
    (folder / "manifest.csv").write_text("\n".join(["path,speaker,emotion", *rows]))

    def stop(*_: object) -> None:
        raise FeaturesAskedError

    monkeypatch.setattr(loading, "load_cached_features", stop)
    data = DataSettings(corpus="folder", folder=str(folder), encoder="log-mel", protocol="loso")
    with FeatureCache(folder / "cache") as cache, pytest.raises(FeaturesAskedError):
        load_corpus(data, cache, said.append, lambda *_: None, recipe=recipe)
    return said


@pytest.fixture
def recordings(tmp_path: Path, write_wav: WriteWav) -> Path:
    for seed, name in enumerate(("a0", "a1", "b0", "b1")):
        write_wav(tmp_path / f"{name}.wav", hertz=100.0 + 20 * seed)
    return tmp_path


@pytest.mark.parametrize("kind", ["ordinal", "hierarchical"])
def test_an_emotion_without_a_place_is_refused_first(
    recordings: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(loss=Loss(kind=kind))

    assert load(recordings, recipe, ("sad", "happy"), monkeypatch)
    with pytest.raises(SettingError, match="known of stage_fright"):
        load(recordings, recipe, ("sad", "stage fright"), monkeypatch)


@pytest.mark.parametrize("targets", ["soft", "majority"])
def test_soft_targets_of_a_corpus_without_votes_are_named(
    recordings: Path, targets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = load(recordings, Recipe(targets=targets), ("sad", "happy"), monkeypatch)

    assert any("votes of several raters" in line for line in said) == (targets == "soft")
