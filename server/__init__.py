"""What runs at the operator's: rounds, checkpoints, head store, ServerApp."""

__all__ = ["aggregation", "app", "consent", "federation", "personalisation", "planning"]
