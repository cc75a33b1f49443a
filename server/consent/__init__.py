"""Consent of users on the server: who has withdrawn it, and what is deleted then."""

__all__ = ["consent_registry", "withdrawal_handler"]
