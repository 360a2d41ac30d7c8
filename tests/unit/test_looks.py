"""When a consumer looks around."""

from __future__ import annotations

import pytest

from celery_durable.transport.looks import Looks


@pytest.fixture
def looks() -> Looks:
    return Looks(first=0.02, longest=1.0, growth=4.0)


def test_looks_become_rarer_the_longer_a_rest_takes(looks: Looks) -> None:
    looks.rests(100.0)
    pauses, now = [], 100.0
    for _ in range(5):
        pauses.append(looks.next - now)
        now = looks.next
        looks.looked(now)

    assert pauses == pytest.approx([0.02, 0.08, 0.32, 1.0, 1.0])


def test_who_has_just_come_to_rest_looks_soon_whatever_comes(looks: Looks) -> None:
    looks.rests(100.0)
    looks.worked()

    assert looks.next == pytest.approx(100.02)


def test_work_puts_a_look_off_but_not_for_ever(looks: Looks) -> None:
    looks.rests(100.0)
    for _ in range(3):
        looks.looked(looks.next)
    last = looks.next - 1.0

    for _ in range(2):
        looks.worked()
        assert looks.next == pytest.approx(last + 2.0)
