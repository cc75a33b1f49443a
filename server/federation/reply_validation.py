"""Validation of replies by the norms that a plan allows; see ``reply_limits``."""

from torch import Tensor

from sottovoce.server.federation import reply_limits
from sottovoce.shared.printable import get_logger, quote_peer
from sottovoce.shared.privacy import clipping
from sottovoce.shared.protocol.messages import Reply, Status, TrainRequest
from sottovoce.shared.protocol.training_plan import Plan

LOG = get_logger("sottovoce.server")


class ReplyValidator:
    """Refuses vectors that no honest device can have sent, each with a warning.

    Args:
        plan: The run's public facts, which all limits follow from.
        max_update_norm: The operator's own limit on an update's L2 norm, above 0.

    Guarantees:
        - No limit depends on what devices send, so no device can move it.
        - A vector with a NaN or an infinity has no norm within any limit, and is refused.
    """

    def __init__(self, plan: Plan, *, max_update_norm: float) -> None:
        self._plan = plan
        self._max_update_norm = max_update_norm

    def accepts_enrolment(self, reply: Reply) -> bool:
        """Whether an honest device can have sent these label counts and share of the centre."""
        classes = len(self._plan.labels)
        # Devices that only receive, and those whose sums are secure, send nothing to be validated.
        if reply.value is None or not len(reply.value):
            return True
        counts, centre = reply.value[:classes], reply.value[classes:]
        return self._is_within(
            reply.user, "label counts", counts, reply_limits.max_counts_norm(self._plan)
        ) and self._is_within(
            reply.user, "share of the centre", centre, reply_limits.max_centre_norm(self._plan)
        )

    def accepts_statistics(self, reply: Reply) -> bool:
        """Whether a reply holds head statistics that an honest device can have sent."""
        limit = reply_limits.max_statistics_norm(self._plan)
        return reply.value is not None and self._is_within(reply.user, "answer", reply.value, limit)

    def update_norm(self, reply: Reply, request: TrainRequest) -> float | None:
        """Compute the L2 norm of an update that takes part; None for one that is refused.

        Args:
            reply: A device's reply.
            request: What it answers.
        """
        if reply.status is not Status.OK or reply.value is None:
            LOG.warning("%s takes no part: %s", reply.user, quote_peer(reply.reason))
            return None
        norm = clipping.l2_norm(reply.value)
        limit = reply_limits.max_update_norm(
            self._plan, params=len(request.weights), denominator=request.denominator
        )
        # "not <=": an update with a NaN has no norm within any limit.
        if not norm <= min(limit, self._max_update_norm):
            LOG.warning("the update of %s has norm %.3g; refused", reply.user, norm)
            return None
        return norm

    def _is_within(self, user: str, what: str, value: Tensor, limit: float) -> bool:
        """Whether a vector's norm is within a limit; a warning where it is not."""
        norm = clipping.l2_norm(value)
        if norm <= limit:
            return True
        LOG.warning(
            "the %s of %s has norm %.3g, and at most %.3g by the plan; refused",
            what,
            user,
            norm,
            limit,
        )
        return False
