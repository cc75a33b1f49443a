"""From corpora to what the folds of a run share: features, and what pretraining gives."""
