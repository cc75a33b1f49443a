"""Weights of a curriculum: what is easy counts in full from the first round, what is hard later."""

import torch
from torch import Tensor

from sottovoce.shared.models.examples import Examples
from sottovoce.shared.protocol.local_training import Curriculum


def compute_curriculum_weights(
    curriculum: Curriculum, logits: Tensor, examples: Examples, progress: float
) -> Tensor | None:
    """Compute the factor of each utterance's loss.

    Args:
        curriculum: What makes an utterance easy.
        logits: Outputs of the present model, shape (utterances, classes), float32.
        examples: The same utterances; with votes where raters' agreement is asked for.
        progress: Which part of the rounds is over, in [0, 1].

    Returns:
        Shape (utterances,), in [0, 1], without gradients; None where every loss counts in full.

    Guarantees:
        - Each factor depends on its own utterance, the model and public numbers alone. So the
          factor of one utterance moves no other's gradient, and is applied before the clip.
        - Who joins a step does not depend on it.

    Example:
        >>> from sottovoce.shared.models.examples import stack_utterances
        >>> both = stack_utterances([torch.zeros(3), torch.ones(3)], labels=[0, 1])
        >>> logits = torch.tensor([[0.0, 0.0], [-9.0, 9.0]])
        >>> sure = Curriculum(kind="confidence", strength=1.0)
        >>> compute_curriculum_weights(sure, logits, both, 0.0)
        tensor([0.5000, 1.0000])
    """
    power = curriculum.strength * (1 - progress)
    if curriculum.kind == "none" or power == 0:
        return None
    votes = examples.votes
    if curriculum.kind == "agreement":
        # An utterance without votes has one rater, who agrees with himself.
        return None if votes is None else votes.max(1).values.pow(power)
    chances = torch.softmax(logits.detach(), 1)
    # Never divided by the batch's mean: that would couple its utterances.
    return chances.gather(1, examples.labels[:, None])[:, 0].pow(power)
