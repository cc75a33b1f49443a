"""Sums over users: bounded, booked, noised, released once; and the step that they give."""

__all__ = [
    "correlated_noise",
    "private_sums",
    "released_sums",
    "secagg_server",
    "secure_sum",
    "server_anchor",
    "server_optimizer",
    "streaming_sums",
]
