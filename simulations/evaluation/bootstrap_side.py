"""Sums per user under one system's probabilities, from which any cohort's figures follow.

Users are resampled, not utterances, as in
:mod:`~sottovoce.simulations.evaluation.bootstrap`. Each measure is summed once per user, and a
cohort weights those sums by how often each user was drawn. Bins of confidence are set once, on
all users, and do not move with the cohort.
"""

from functools import cached_property

import numpy as np

from sottovoce.shared import validation
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.bootstrap import measure_cohorts
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray


class BootstrapSide:
    """One side of a paired bootstrap: predictions before or after users' heads.

    Every measure takes cohorts, shape (draws, users), the number of times that each user was drawn,
    and returns one value per cohort, shape (draws,).

    Args:
        probabilities: Shape (utterances, classes), float64.
        labels: True classes, shape (utterances,), int64.
        users: Whose each utterance is, shape (utterances,), int64, from 0 without gaps.

    Example:
        >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> side = BootstrapSide(sure, np.array([0, 1, 1]), np.array([0, 0, 1]))
        >>> side.measure_uar(np.array([[1, 1], [2, 0]])).tolist()
        [0.75, 1.0]
    """

    def __init__(self, probabilities: FloatArray, labels: CountArray, users: CountArray) -> None:
        self._probabilities, self._labels, self._users = probabilities, labels, users
        self._clips = np.bincount(users)
        self._target = np.eye(probabilities.shape[1])[labels]
        self._guess = probabilities.argmax(axis=1)
        self._confidence: FloatArray = probabilities.max(axis=1)
        self._right = (self._guess == labels).astype(np.float64)

    @property
    def user_count(self) -> int:
        """Number of users on this side."""
        return len(self._clips)

    @cached_property
    def user_uars(self) -> FloatArray:
        """UAR of each user, shape (users,)."""
        return np.array([metrics.uar(matrix) for matrix in self._confusions])

    def measure_uar(self, cohorts: CountArray) -> FloatArray:
        """Unweighted average recall over each cohort's utterances."""
        return measure_cohorts(cohorts, self._confusions)

    def measure_user_percentile(self, cohorts: CountArray, percent: float) -> FloatArray:
        """A percentile, in [0, 100], of the UARs of each cohort's users."""
        uars = self.user_uars
        # Percentiles are no sums: each cohort is written out, user by user.
        return np.array([np.percentile(np.repeat(uars, cohort), percent) for cohort in cohorts])

    def measure_ece(self, cohorts: CountArray) -> FloatArray:
        """Expected calibration error of the most probable class."""
        return self._mean_over_clips(np.abs(cohorts @ self._top_gaps).sum(axis=1), cohorts)

    def measure_classwise_ece(self, cohorts: CountArray) -> FloatArray:
        """Expected calibration error of every class's probability, averaged over classes."""
        parts = [np.abs(cohorts @ gaps).sum(axis=1) for gaps in self._class_gaps]
        return self._mean_over_clips(np.mean(parts, axis=0), cohorts)

    def measure_nll(self, cohorts: CountArray) -> FloatArray:
        """Mean negative log likelihood of the true class, in nats."""
        return self._mean_over_clips(cohorts @ self._nll, cohorts)

    def measure_brier(self, cohorts: CountArray) -> FloatArray:
        """Compute the mean Brier score, in [0, 2]."""
        return self._mean_over_clips(cohorts @ self._brier, cohorts)

    def measure_answered(self, cohorts: CountArray, coverage: float) -> FloatArray:
        """Share of each cohort's clips that are answered.

        Args:
            cohorts: As above.
            coverage: Share of all clips, the most confident of all users', that are answered,
                in (0, 1].
        """
        validation.require_rate(coverage=coverage)
        threshold = np.quantile(self._confidence, 1 - coverage, method="lower")
        answered = (self._confidence >= threshold).astype(np.float64)
        return self._mean_over_clips(cohorts @ self._sum_by_user(answered), cohorts)

    def measure_aurc(self, cohorts: CountArray) -> FloatArray:
        """Compute the area under the risk-coverage curve."""
        ranked, wrong = self._ranking
        found = []
        for cohort in cohorts:
            times = cohort[ranked].astype(np.float64)
            answered = np.cumsum(times)
            # A user who was not drawn at the top of the ranking leaves nothing answered yet.
            risk = np.cumsum(times * wrong) / np.maximum(answered, 1)
            found.append(float(times @ risk) / float(answered[-1]))
        return np.array(found)

    def _mean_over_clips(self, sums: FloatArray, cohorts: CountArray) -> FloatArray:
        """Sums of cohorts by how many utterances they have."""
        return np.asarray(sums / (cohorts @ self._clips))

    @cached_property
    def _confusions(self) -> CountArray:
        """One confusion matrix a user, shape (users, classes, classes)."""
        classes = self._probabilities.shape[1]
        own = [self._users == user for user in range(self.user_count)]
        return np.stack(
            [metrics.confusion_matrix(self._labels[o], self._guess[o], classes) for o in own]
        )

    @cached_property
    def _nll(self) -> FloatArray:
        true = self._probabilities[np.arange(len(self._labels)), self._labels]
        # The floor keeps one certain mistake from making the mean infinite.
        return self._sum_by_user(-np.log(np.maximum(true, metrics.PROBABILITY_FLOOR)))

    @cached_property
    def _brier(self) -> FloatArray:
        return self._sum_by_user(np.square(self._probabilities - self._target).sum(axis=1))

    def _sum_by_user(self, values: FloatArray) -> FloatArray:
        return np.bincount(self._users, weights=values).astype(np.float64)

    @cached_property
    def _top_gaps(self) -> FloatArray:
        return sum_gaps(self._confidence, self._right, self._users)

    @cached_property
    def _class_gaps(self) -> list[FloatArray]:
        columns = zip(self._probabilities.T, self._target.T, strict=True)
        return [sum_gaps(confidence, target, self._users) for confidence, target in columns]

    @cached_property
    def _ranking(self) -> tuple[CountArray, FloatArray]:
        """Users of utterances, most confident first, and how wrong each utterance is.

        Equally confident utterances share their accuracy: their order says nothing.
        """
        # Only ties depend on the secondary key; it makes their order reproducible.
        order = np.lexsort((self._users, -self._confidence))
        _, tie, count = np.unique(-self._confidence, return_inverse=True, return_counts=True)
        wrong = 1 - (np.bincount(tie, weights=self._right) / count)[tie]
        return self._users[order], wrong[order]


def sum_gaps(confidence: FloatArray, correct: FloatArray, users: CountArray) -> FloatArray:
    """Confidence less accuracy, summed by user and bin of equal mass.

    Args:
        confidence: Probability of the class in question, shape (utterances,).
        correct: 1 where that class is the true one, else 0, same shape.
        users: Whose each utterance is, same shape, from 0.

    Returns:
        Shape (users, bins).

    Example:
        >>> gaps = sum_gaps(np.array([0.8, 0.6]), np.ones(2), np.array([0, 0]))
        >>> round(float(gaps.sum()), 6)
        -0.6
    """
    found = np.zeros((int(users.max()) + 1, metrics.DEFAULT_BINS))
    bins = metrics.assign_bins(confidence, metrics.DEFAULT_BINS)
    # np.add.at sums repeated (user, bin) pairs; plain indexing would keep the last of them.
    np.add.at(found, (users, bins), confidence - correct)
    return found
