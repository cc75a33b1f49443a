"""Privacy mechanisms, the ledger of their releases, and accounting."""
