"""Which messages are lost, as a pure decision on evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from celery_durable.keeper.lost import Evidence, presumed_lost
from celery_durable.store.keeping import Unclaimed

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
RUN = Unclaimed("r-1", "celery", None, published_at=NOW - 10 * MINUTE, checks=0, now=NOW)
NOTHING = Evidence(claimed_up_to=None, empty_since=None)


def test_without_evidence_a_message_is_waiting() -> None:
    assert not presumed_lost(RUN, NOTHING, HOUR)


@pytest.mark.parametrize(
    ("claimed_up_to", "lost"),
    [(NOW - 11 * MINUTE, False), (RUN.published_at, False), (RUN.published_at + SECOND, True)],
)
def test_a_message_is_a_hole_when_a_later_one_was_claimed(claimed_up_to: datetime, lost: bool) -> None:  # noqa: FBT001
    assert presumed_lost(RUN, replace(NOTHING, claimed_up_to=claimed_up_to), HOUR) is lost


@pytest.mark.parametrize(
    ("empty_since", "lost"),
    [(NOW - 11 * MINUTE, False), (RUN.published_at, False), (RUN.published_at + SECOND, True)],
)
def test_an_empty_queue_is_evidence_for_what_was_published_before_it_was_empty(
    empty_since: datetime,
    lost: bool,  # noqa: FBT001
) -> None:
    assert presumed_lost(RUN, replace(NOTHING, empty_since=empty_since), HOUR) is lost


@pytest.mark.parametrize(("age", "lost"), [(HOUR - SECOND, False), (HOUR, True), (10 * HOUR, True)])
def test_after_very_long_a_message_is_lost_whatever_is_known(age: timedelta, lost: bool) -> None:  # noqa: FBT001
    assert presumed_lost(replace(RUN, published_at=NOW - age), NOTHING, HOUR) is lost
