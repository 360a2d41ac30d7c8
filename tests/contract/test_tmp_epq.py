from __future__ import annotations
import uuid
from datetime import timedelta
import pytest
from contending import *
from inspecting import Worker, execute
from celery_durable.store.runs import Release
LEASE = timedelta(seconds=30)
@pytest.mark.parametrize("what", ["nothing", "touch", "claimed", "direct"])
def test_x(store: Store, what) -> None:
    lost, other = Worker(store), Worker(store)
    leader = Worker(store)
    claim = lost.start()
    with keeper(store) as k: term = k.lead(leader.token, LEASE)
    lost.vanish()
    def recover(s):
        with keeper(s) as k:
            if what == "direct":
                return k.connection.execute("select r.key, r.worker from durable.run r where r.state='running' and not exists (select from durable.worker w where w.id = r.worker) and exists (select from durable.leader where expires_at > durable.clock()) for update of r skip locked").fetchall()
            return k.recover_orphans(term, limit=10, max_recoveries=5, result=b"", result_type="x")
    with stalled(store) as start:
        found = start(recover)
        if what == "touch":
            store.runs.annotate(claim.key, claim.fence, tags=None, progress="1")
        if what in ("claimed", "direct"):
            store.runs.release(claim.key, claim.fence, Release("released", timedelta(0)))
            again = other.claim(claim.id)
    print(what, found.result())
