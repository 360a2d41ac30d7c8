"""For the tests of your own tasks: pytest fixtures that need no server, and crashes wherever you want them.

pytest finds the fixtures by itself (`celery_durable.testing.plugin`): `durable_store`, `durable_app`,
`durable_worker`, `durable_player`, `crash_after`, `crash_everywhere`. The names below are for other test
runners and for fixtures of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.testing.apps import pointed
    from celery_durable.testing.crashes import CrashDifferenceError, Crashes
    from celery_durable.testing.player import Player, StuckError

_WHERE = {
    "CrashDifferenceError": "crashes",
    "Crashes": "crashes",
    "Player": "player",
    "StuckError": "player",
    "pointed": "apps",
}

__all__ = ["CrashDifferenceError", "Crashes", "Player", "StuckError", "pointed"]


def __getattr__(name: str) -> Any:
    # Loaded at first use: pytest imports this package wherever it is installed.
    if name not in _WHERE:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
