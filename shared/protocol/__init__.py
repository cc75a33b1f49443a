"""What server and devices agree on, and the messages between them."""
