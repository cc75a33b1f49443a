"""Baselines of a private run: the same model and rounds, without devices and without privacy."""

__all__ = ["comparison", "plain_rounds", "pooled_fold"]
