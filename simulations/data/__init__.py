"""From corpora to what the folds of a run share: features, and what pretraining gives."""

__all__ = [
    "cached_features",
    "feature_extraction",
    "few_speakers",
    "fold_inputs",
    "loading",
    "pretraining",
    "pretraining_cache",
    "run_plan",
]
