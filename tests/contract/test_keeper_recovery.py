"""Recovery."""

from __future__ import annotations
import uuid
from datetime import timedelta
from contending import *
from inspecting import Worker, execute

LEASE = timedelta(seconds=30)


def test_a_run_claimed_anew_while_recovery_looks_is_left_alone(store: Store) -> None:
    lost, other = Worker(store), Worker(store)
    leader = Worker(store)
    claim = lost.start()
    with keeper(store) as k:
        term = k.lead(leader.token, LEASE)
    lost.vanish()

    def recover(s):
        with keeper(s) as k:
            return k.recover_orphans(term, limit=10, max_recoveries=5, result=b"", result_type="x")

    with stalled(store) as start:
        found = start(recover)
        from celery_durable.store.runs import Release

        store.runs.release(claim.key, claim.fence, Release("released", timedelta(0)))
        again = other.claim(claim.id)
    print(found.result())
    assert found.result() == []
