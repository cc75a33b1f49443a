"""What server and devices agree on, and the messages between them."""

__all__ = ["consent", "events", "flower_records", "local_training", "messages", "training_plan"]
