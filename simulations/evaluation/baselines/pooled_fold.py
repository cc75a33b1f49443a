"""One fold with everybody's clips in one memory, normalised by every user's exact mean."""

from dataclasses import replace

import torch
from torch import Tensor

from sottovoce.server.planning.public_pretraining import group_means
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.speaker import normalisation
from sottovoce.simulations.corpora.speaker_splits import Fold
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.scenario.settings import BaselineSettings


class PooledFold:
    """The users of a fold, with all their clips prepared for the model.

    Args:
        settings: Enrolment and recipe: whether users' means are subtracted.
        fold: Who trains and who tests.
        fold_inputs: What all folds share.

    Attributes:
        training_users: Each training user's clips.
        test: All test users' clips.
    """

    def __init__(self, settings: BaselineSettings, fold: Fold, fold_inputs: FoldInputs) -> None:
        self._inputs = fold_inputs
        self._subtracts_mean = settings.enrolment.enrolment != "none" and settings.recipe.centre
        projected = [self._project_user(user) for user in fold.train]
        means = torch.cat([rows for _, rows in projected]).mean(0)
        # A recipe without centring feeds raw projections: a zero mean leaves them as they are.
        self._centre = means if settings.recipe.centre else torch.zeros_like(means)
        self.training_users = [self.prepare_user(user) for user in fold.train]
        self.test = concatenate_examples([self.prepare_user(user) for user in fold.test])

    def _project_user(self, user: str) -> tuple[Examples, Tensor]:
        """A user's clips after the projection, and one row each."""
        examples = self._inputs.build_examples(self._inputs.clips[user])
        projected = self._inputs.projection.project_features(examples.features)
        return replace(examples, features=projected), normalisation.average_frames(
            projected, examples.frames
        )

    def prepare_user(self, user: str) -> Examples:
        """Prepare the clips of a user for the model.

        Args:
            user: Name of a speaker of the run's corpus, of whichever part of the fold.
        """
        examples, rows = self._project_user(user)
        mean = self._centre
        if self._subtracts_mean:
            # One group: all rows of the user are averaged without noise.
            mean = group_means(rows, torch.zeros(len(rows), dtype=torch.int64))[0]
        inputs = self._inputs.projection.normalise_rows(examples.features, mean, examples.frames)
        return replace(examples, features=inputs)
