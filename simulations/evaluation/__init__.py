"""Predictions of test users, and every figure computed from them."""
