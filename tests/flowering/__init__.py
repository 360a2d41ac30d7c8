"""Code that a Flower under test loads by its dotted path: a login of its own and a redaction function."""

from __future__ import annotations

from typing import Any


def without_secrets(kind: str, name: str, value: Any) -> Any:
    """Hide every value of a key called token, and every word that looks like one."""
    if isinstance(value, dict):
        return {
            key: "***" if key == "token" else without_secrets(kind, name, part) for key, part in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(kind, name, part) for part in value]
    return value.replace("s3cret", "***") if isinstance(value, str) else value


def nothing_at_all(kind: str, name: str, value: Any) -> Any:
    """Let nothing through."""
    return "gone"
