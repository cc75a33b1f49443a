"""What a resumed run reads back from its folder: as it was written, or refused by name."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, mutated_bytes, mutated_json, mutated_json_texts

from sottovoce.server.federation import checkpoint
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.checksums import decode_record, encode_record, encode_tensors
from sottovoce.shared.errors import ModelError
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.evaluation import fold_result

LABELS = ("happy", "sad")
CLIPS = [
    Clip(clip_id=f"c{n}", path=Path(f"c{n}.wav"), speaker="ada", emotion=LABELS[n % 2], label="x")
    for n in range(4)
]
FACTS = {"clips": [clip.clip_id for clip in CLIPS], "curve": [[1, 0.5]], "ledgers": {"bob": "0"}}
SCORES = {
    "before": torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]),
    "after": torch.tensor([[0.8, 0.2], [0.1, 0.9], [0.7, 0.3], [0.4, 0.6]]),
    "labels": torch.tensor([0, 1, 0, 1]),
    "labelled": torch.tensor([False, False, False, False]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fold and a checkpoint."""
    folder = tmp_path_factory.mktemp("fold")
    fold_result.write_result(folder, FACTS, SCORES)
    prior = HeadPrior(mean=identity_head(2), bias_sd=0.2)
    checkpoint.save_released_model(folder, {"weights": torch.ones(3)}, prior)
    return folder


def load(folder: Path) -> fold_result.FoldResult:
    return fold_result.load_result(folder, fold="f", labels=LABELS, clips=CLIPS, has_heads=True)


@contextlib.contextmanager
def copied(folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as other:
        yield Path(shutil.copytree(folder, Path(other) / "fold"))


def test_a_fold_is_read_back(folder: Path) -> None:
    assert load(folder).final_uar == 0.5


@FUZZ
@given(st.data(), st.sampled_from(("outcome.json", "outcome.safetensors")))
def test_a_changed_result_is_refused(folder: Path, data: st.DataObject, name: str) -> None:
    valid = (folder / name).read_bytes()
    changed = data.draw(mutated_bytes(valid))
    with copied(folder) as own:
        (own / name).write_bytes(changed)
        if changed == valid:
            return
        with contextlib.suppress(ModelError):  # spaces of JSON change nothing
            result = load(own)
            assert result.predictions.labels.tolist() == [0, 1, 0, 1]
            assert result.final_uar == 0.5


@FUZZ
@given(mutated_json(FACTS | {"scores_sha256": ""}))
def test_facts_of_any_kind_under_a_true_checksum_are_read_or_refused(
    folder: Path, facts: Any
) -> None:
    with copied(folder) as own:
        if isinstance(facts, dict):
            facts["scores_sha256"] = decode_record((own / "outcome.json").read_bytes())[
                "scores_sha256"
            ]
            with contextlib.suppress(UnicodeEncodeError, TypeError):
                (own / "outcome.json").write_bytes(encode_record(facts))
        with contextlib.suppress(ModelError):
            load(own)


@FUZZ
@given(mutated_json_texts({"round": 3, "users": ["ada"]}))
def test_any_text_is_a_record_with_its_checksum_or_refused(text: bytes) -> None:
    with contextlib.suppress(ModelError):
        assert encode_record(decode_record(text))


def _swap_labels(scores: dict[str, torch.Tensor]) -> None:
    scores["labels"] = 1 - scores["labels"]


def _shorten_column(scores: dict[str, torch.Tensor]) -> None:
    scores["after"] = scores["after"][:2]


def _widen_column(scores: dict[str, torch.Tensor]) -> None:
    scores["before"] = torch.ones(4, 7)


def _nan(scores: dict[str, torch.Tensor]) -> None:
    scores["before"] = scores["before"] * torch.nan


def _remove_column(scores: dict[str, torch.Tensor]) -> None:
    del scores["labelled"]


@pytest.mark.parametrize(
    "harm", [_swap_labels, _shorten_column, _widen_column, _nan, _remove_column]
)
def test_scores_that_are_not_those_of_the_fold_are_refused_under_a_true_checksum(
    folder: Path, harm: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    scores = dict(SCORES)
    harm(scores)
    with copied(folder) as own:
        fold_result.write_result(own, FACTS, scores)
        with pytest.raises(ModelError, match=r"damaged .* remove .* --resume"):
            load(own)


def test_scores_of_another_fold_are_refused(folder: Path) -> None:
    with copied(folder) as own:
        data = encode_tensors(SCORES | {"after": SCORES["before"].clone()})
        (own / "outcome.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match="not the file that was written with"):
            load(own)


@FUZZ
@given(st.data())
def test_a_released_model_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    changed = data.draw(mutated_bytes((folder / "released.safetensors").read_bytes()))
    with copied(folder) as own:
        (own / "released.safetensors").write_bytes(changed)
        with contextlib.suppress(ModelError):
            tensors, _ = checkpoint.load_released_model(own)
            assert torch.equal(tensors["weights"], torch.ones(3))
