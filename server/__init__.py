"""What runs at the operator's: rounds, checkpoints, head store, ServerApp."""
