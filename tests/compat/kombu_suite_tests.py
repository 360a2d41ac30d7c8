"""kombu's own transport tests (`t/integration/common.py` of its sdist), unmodified, on this transport."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import kombu
import pytest
from t.integration import common

from celery_durable.transport import register

if TYPE_CHECKING:
    from collections.abc import Iterator

register()


@pytest.fixture
def connection() -> Iterator[kombu.Connection]:
    with kombu.Connection(os.environ["KOMBU_SUITE_URL"], transport_options={"auto_migrate": True}) as made:
        yield made


@pytest.fixture
def invalid_connection() -> kombu.Connection:
    return kombu.Connection("durable+postgresql://nobody@127.0.0.1:1/nowhere")


def _tests_of(mixin: Any) -> Any:
    # pytest collects classes by the name Test…; the bodies are kombu's.
    return type(f"Test{mixin.__name__}", (mixin,), {})


TestBasic = _tests_of(common.BasicFunctionality)
TestExchangeTypes = _tests_of(common.BaseExchangeTypes)
TestTimeToLive = _tests_of(common.BaseTimeToLive)
TestPriority = _tests_of(common.BasePriority)
TestMessage = _tests_of(common.BaseMessage)
TestEventLoop = _tests_of(common.BaseEventLoop)
