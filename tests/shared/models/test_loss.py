import pytest
import torch

from sottovoce.shared.models import cross_entropy


def test_an_utterance_costs_its_weight_times_its_surprise() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1])
    weights = torch.tensor([3.0, 5.0])
    surprise = -torch.log_softmax(logits, dim=1)

    losses = cross_entropy(logits, labels, weights)

    assert losses.tolist() == pytest.approx([3 * surprise[0, 0].item(), 5 * surprise[1, 1].item()])


def test_a_smoothed_target_is_partly_every_class() -> None:
    logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    weights = torch.tensor([3.0, 5.0])
    surprise = (-torch.log_softmax(logits, dim=1))[0] * weights

    smoothed = cross_entropy(logits, labels, weights, 0.2)

    assert smoothed.item() == pytest.approx(0.8 * surprise[0].item() + 0.2 * surprise.mean().item())


def test_an_utterance_costs_the_same_in_any_company() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 4.0])

    together = cross_entropy(logits, labels, weights)

    for index in range(6):
        alone = cross_entropy(logits[index : index + 1], labels[index : index + 1], weights)
        assert torch.equal(alone[0], together[index])


def test_nobody_costs_nothing() -> None:
    losses = cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.ones(3))

    assert losses.shape == (0,)
