-- Slots: whoever asks for one, or hands one on, holds the lock of its key to the end of the transaction, and looks in
-- a later statement, whose snapshot is younger than the lock.

-- name: lock
select pg_advisory_xact_lock(472193, hashtext(coalesce(%(slot)s::text, (select slot from durable.run where id = %(id)s))))

-- name: wait
-- A run that was refused for want of a slot waits for one, and expires meanwhile as any other. Whether there is one is
-- not asked again: a worker may have been declared dead since the claim, and the run would be left where it was.
update durable.run r
set state = 'waiting', reason = 'slot', due = case when r.attempt = 0 then r.expires_at end, published_at = null
from durable.worker w
where r.id = %(id)s and r.state = 'pending' and r.slot is not null
  and w.token = %(token)s and (%(task)s::text is null or r.task = %(task)s)
  and (%(version)s::text is null or r.version is null or r.version = %(version)s)
  and (r.attempt > 0 or r.expires_at is null or r.expires_at > durable.clock())
returning r.key

-- name: grant
-- Wake the first of those that wait, as many as there are slots.
with best as materialized (
    select r.key, r.slot_limit, r.slot_rate, r.slot_period, r.started_at,
           row_number() over (order by r.slot_rank desc, r.key) as place
    from durable.run r
    where r.slot = coalesce(%(slot)s::text, (select slot from durable.run where id = %(id)s))
      and r.state = 'waiting' and r.reason = 'slot'
    order by r.slot_rank desc, r.key limit %(limit)s
), taken as materialized (
    select durable.slot_taken(coalesce(%(slot)s::text, (select slot from durable.run where id = %(id)s)),
                              0, %(check)s) as runs
), granted as (
    select r.key from durable.run r join best on best.key = r.key cross join taken
    where r.state = 'waiting' and r.reason = 'slot'
      and (best.slot_limit is null or taken.runs + best.place <= best.slot_limit)
      and (best.slot_rate is null or best.started_at is not null
           or durable.slot_started(r.slot, 0, durable.clock() - best.slot_period, %(check)s) + best.place
              <= best.slot_rate)
    order by r.key for update of r skip locked
)
update durable.run r
set state = 'pending', published_at = durable.clock(), due = durable.clock() + %(check)s::interval, checks = 0
from granted where r.key = granted.key
returning r.id, r.message, r.body

-- name: open
-- Keys that have a slot for the first of those that wait, from one key on: found key by key in an index. Of a key that
-- has none because of its rate: in how many seconds the start is old enough that stands in the way.
with recursive keys (slot) as (
    (select r.slot from durable.run r
     where r.state = 'waiting' and r.reason = 'slot' and r.slot > %(slot)s order by r.slot limit 1)
    union all
    select (select r.slot from durable.run r
            where r.state = 'waiting' and r.reason = 'slot' and r.slot > keys.slot order by r.slot limit 1)
    from keys where keys.slot is not null
), found as materialized (
    select slot from keys where slot is not null limit %(limit)s
)
select found.slot, durable.slot_open(first.run, %(check)s) as open,
       (select extract(epoch from o.started_at + (first.run).slot_period - durable.clock())::float8
        from durable.run o
        where o.slot = found.slot and o.slot_rate is not null and o.started_at > durable.clock() - (first.run).slot_period
        order by o.started_at desc offset greatest((first.run).slot_rate - 1, 0) limit 1) as opens_in
from found cross join lateral (
    select r as run from durable.run r
    where r.slot = found.slot and r.state = 'waiting' and r.reason = 'slot'
    order by r.slot_rank desc, r.key limit 1) as first
order by found.slot
