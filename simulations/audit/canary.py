"""The worst utterance: one that an attacker knows, sees alone, and that moves all it can.

The canary's row points far along one direction, so that it fills every clip whatever the user's
mean is. The server, which may send what it likes, sends in every round a model that bets against
the canary's label along that direction. What moves when the canary comes in is known but for the
noise, so the likelihood ratio of Gaussians is a linear score (Nasr et al. 2021, 2023).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import normaliser, seeds
from sottovoce.shared.examples import Examples, join
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.spec import build
from sottovoce.shared.privacy.noise import SeededNoise
from sottovoce.simulations.audit import bounds
from sottovoce.simulations.audit.bounds import Bound, Floats
from sottovoce.simulations.audit.sight import witnessed
from sottovoce.simulations.audit.subject import Asked, Course, Seen, Subject, hushed, live

FAR = 1e3
"""Length of a canary's row in front units, where usual rows are about 1 long."""

BET = 10.0
"""Logit by which the server's model bets against the canary: sure of it, and so still unsure of
utterances that lie across, whose gradients then show which way the user's mean has moved."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Direction:
    """Along what a canary moves each thing that is sent.

    Attributes:
        label: The canary's class.
        row: Its direction in front space, shape (inputs,), of length 1.
        own: Its own gradient's part of an update, shape (params,).
        others: How far it moves all others' gradients by moving the user's mean, (params,).
        answer: How it moves the head statistics, shape (WIDTH,); none where they are not asked for.
    """

    label: int
    row: Tensor
    own: Tensor
    others: Tensor
    answer: Tensor

    def statistics(self, seen: Seen) -> list[float]:
        """All that can tell: counts, centre, the mean update along both directions, the answer."""
        classes = len(seen.enrolment) - len(self.row)
        mean = seen.updates.double().mean(0)
        return [
            float(seen.enrolment[self.label]),
            float(seen.enrolment[classes:] @ self.row),
            float(mean @ _unit(self.own)),
            float(mean @ _unit(self.others)),
            *([float(seen.answer.double() @ _unit(self.answer))] if len(self.answer) else []),
        ]


def utterance(front: Front, rows: Tensor, labels: list[int]) -> Examples:
    """Utterances whose rows in front space are these, as raw features.

    Args:
        front: The public front; its inputs must not outnumber its features.
        rows: Shape (utterances, inputs).
        labels: One class an utterance.
    """
    back = torch.linalg.pinv(front.matrix.double())
    features = front.mean.double() + rows.double() @ back
    ones = torch.ones(len(rows), dtype=torch.int64)
    classes = torch.tensor(labels, dtype=torch.int64)
    return Examples(features=features.float(), frames=ones, labels=classes)


def canary(course: Course, seed: int) -> tuple[Course, Examples, Tensor]:
    """The course of a server that looks for a canary, the canary, and its row.

    Returns:
        The course, whose model bets against the canary in every round; the utterance as raw
        features; its direction in front space, shape (inputs,).
    """
    draws = seeds.torch_rng(seed, "audit", "canary")
    row = _unit(torch.randn(course.front.inputs, generator=draws))
    course = _sending(course, _betting(course, row))
    far = (course.centre + FAR * row)[None]
    return course, utterance(course.front, far, [_unlikely(course, row)]), row


def aim(course: Course, others: Examples, placed: Examples, row: Tensor) -> Direction:
    """How updates move: three lives that the attacker lives for itself, without noise."""
    quiet = hushed(course.constant(1))
    lives = [live(quiet, held, 0) for held in (join([others, placed]), others, placed)]
    both, without, alone = (one.updates[0].double() for one in lives)
    return Direction(
        label=int(placed.labels[0]),
        row=row,
        own=alone,
        others=both - without - alone,
        answer=(lives[0].answer - lives[1].answer).double(),
    )


def scores(
    course: Course,
    others: Examples,
    *,
    lives: int,
    seed: int,
    whole: bool = False,
    progress: Progress = lambda _what, _done, _total: None,
) -> tuple[Floats, Floats]:
    """Statistics of many lives without and with the canary.

    Args:
        course: What the server asks; its model is bent against the canary.
        others: The device's own utterances as raw features.
        lives: How many lives of each kind.
        seed: Decides the canary and all noise.
        whole: Whether the canary is all that the user has, as many utterances as the others, and
            is looked for in the sums over users; then the promise to a user is audited.
        progress: Takes (what, done, total).

    Returns:
        Without and with the canary, each shape (lives, statistics).
    """
    course, placed, row = canary(course, seed)
    if whole:
        placed, others = (
            placed.take(torch.zeros(len(others), dtype=torch.int64)),
            others.take(torch.zeros(0, dtype=torch.int64)),
        )
    towards = aim(course, others, placed, row)
    held = others, join([others, placed])
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(lives):
        for kind in (0, 1):
            own = seeds.derive(seed, "audit", "life", number, kind)
            seen = live(course, held[kind], own)
            found[kind].append(towards.statistics(witnessed(course, seen, own) if whole else seen))
        progress("lives of the canary's device", number + 1, lives)
    return np.array(found[0]), np.array(found[1])


def judged(
    without: Floats, present: Floats, *, delta: float, confidence: float, learns: float = 0.3
) -> Bound:
    """Lower bounds from statistics; the first lives teach the score, the others are counted.

    Args:
        without: Statistics without the canary, shape (lives, statistics).
        present: With it, likewise.
        delta: Of the promise.
        confidence: Of each bound.
        learns: Share of the lives that teach the score and the threshold.
    """
    cut = max(2, int(learns * len(without)))
    weights = _discriminant(without[:cut], present[:cut])
    first, second = without @ weights, present @ weights
    return bounds.many_runs(
        (first[:cut], second[:cut]),
        (first[cut:], second[cut:]),
        delta=delta,
        confidence=confidence,
    )


def first_message(
    course: Course, *, lives: int, seed: int, delta: float, confidence: float
) -> Bound:
    """The same for a device's share of the centre alone, over very many lives.

    The device holds nothing but the canary, or nothing. It is the cheapest release, so it shows
    what no hundreds of whole lives could: that one without noise costs more than any finite claim.
    A bound on a part is a bound on the whole.
    """
    settings = course.plan.centre
    row = torch.randn(course.front.inputs, generator=seeds.torch_rng(seed, "audit", "first"))
    alone = (course.centre + FAR * _unit(row))[None]
    held = alone[:0], alone
    draws = SeededNoise(seeds.torch_rng(seed, "audit", "first message"))
    if settings is None:
        return Bound(epsilon=0.0, epsilon_gaussian=0.0, mu=0.0, ceiling=0.0, lives=0)
    found = [
        np.array(
            [
                float(normaliser.released_sum(mine, settings, draws) @ _unit(row))
                for _ in range(lives)
            ]
        )[:, None]
        for mine in held
    ]
    return judged(*found, delta=delta, confidence=confidence, learns=0.05)


def last_message(
    course: Course, *, lives: int, seed: int, delta: float, confidence: float
) -> Bound | None:
    """The same for a device's head statistics alone; None where nothing is asked.

    The device enrols once, with the canary or with nothing; what differs from life to life is the
    noise of its answer.
    """
    if course.asked is None or course.plan.calibration is None:
        return None
    course, placed, row = canary(course, seed)
    nothing = placed.take(slice(0))
    towards = _unit(aim(course, nothing, placed, row).answer)
    found = []
    for kind, held in enumerate((nothing, placed)):
        subject = Subject(held, course.plan.labels, seed)
        subject.enrol(course)
        noises = [seeds.derive(seed, "audit", "last message", kind, n) for n in range(lives)]
        along = [float(one.double() @ towards) for one in subject.answers(course, noises)]
        found.append(np.array(along)[:, None])
    return judged(*found, delta=delta, confidence=confidence, learns=0.05)


def _sending(course: Course, weights: Tensor) -> Course:
    """The course of a server that sends one model in every round, and asks about it at the end.

    Ranges are told less the first one, where no score of an utterance lies that the model bets
    against: so its answer is as long as one may be.
    """
    course = replace(course, weights=[weights] * len(course.weights))
    if course.asked is None:
        return course
    shares = torch.zeros_like(course.asked.question.shares)
    shares[0] = 1.0
    question = replace(course.asked.question, shares=shares)
    return replace(course, asked=Asked(weights=weights, question=question))


def _discriminant(without: Floats, present: Floats) -> Floats:
    """Fisher's linear discriminant (1936), shape (statistics,)."""
    apart = present.mean(0) - without.mean(0)
    scale = np.maximum(without.std(0) + present.std(0), 1e-9 * (np.abs(apart).max() + 1e-300))
    spread = (np.cov((without / scale).T) + np.cov((present / scale).T)) / 2
    spread = np.atleast_2d(spread) + 1e-3 * np.eye(len(apart))
    weights: Floats = np.linalg.solve(spread, apart / scale) / scale
    return weights


def _betting(course: Course, row: Tensor) -> Tensor:
    """The server's model, bent where it is linear: whatever lies along ``row`` is not that class.

    Shape (params,).
    """
    weights, spec = course.weights[0].clone(), course.plan.model
    if spec.kind == "linear" and not spec.reads_frames:
        bend = BET / (course.front.length or FAR)
        place = _unlikely(course, row) * spec.inputs
        weights[place : place + spec.inputs] -= bend * row
    return weights


def _unlikely(course: Course, row: Tensor) -> int:
    """The class that the server's model believes least of an utterance along ``row``."""
    model = build(course.plan.model, seed=0).eval()
    load_flat(model, course.weights[0])
    read = row * (course.front.length or FAR)
    with torch.no_grad():
        logits = model(read[None], torch.ones(1, dtype=torch.int64))[0]
    return int((logits - course.class_weights.log()).argmin())


def _unit(vector: Tensor) -> Tensor:
    """Of length 1, float64 where it was; zeros stay zeros."""
    directed: Tensor = vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)
    return directed
