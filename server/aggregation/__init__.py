"""Sums over users: bounded, booked, noised, released once; and the step that they give."""
