"""Local service of a device, for apps on the same machine: HTTP, WebSocket, and a page.

It listens on loopback alone. An app has a token of its own, with scopes; the device's owner uses
the page, by a link that is printed once. ``http_api`` and ``stream_api`` say what can be asked,
``request_guard`` what never reaches them.
"""

__all__ = [
    "access",
    "app_tokens",
    "device_session",
    "held_moments",
    "http_api",
    "live_streams",
    "owner_api",
    "page",
    "problems",
    "request_guard",
    "schemas",
    "server",
    "service_limits",
    "stream_api",
    "uploads",
]
