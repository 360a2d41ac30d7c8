-- Keys that stand for one run of a task at a time. A caller holds the key's row from its first statement to its
-- commit, and looks at the run in a later one: in the first, the snapshot may be older than the run it waits for.

-- name: take
-- Be the first with this key, or wait for who is being it just now.
insert into durable.once (task, kind, key, run, expires_at)
values (%(task)s, %(kind)s, %(key)s, %(id)s, durable.clock() + %(ttl)s::interval)
on conflict (task, kind, key) do nothing
returning run

-- name: hold
-- The key's run, while nobody else can give it another one.
select run, expires_at from durable.once
where task = %(task)s and kind = %(kind)s and key = %(key)s
for update

-- name: free
-- Whether the key is to be had: its time is over, or its run is gone; or, for a singleton, over; or, for a debounced
-- one, no longer waiting for its time.
select case when o.expires_at <= durable.clock() or r.id is null then true
            when o.kind = 'singleton' then r.finished_at is not null
            when o.kind = 'debounce' then r.state <> 'waiting' or r.reason <> 'timer' or r.attempt > 0
            else false end as free
from durable.once o left join durable.run r on r.id = o.run
where o.task = %(task)s and o.kind = %(kind)s and o.key = %(key)s

-- name: retake
update durable.once set run = %(id)s, expires_at = durable.clock() + %(ttl)s::interval
where task = %(task)s and kind = %(kind)s and key = %(key)s
returning run

-- name: mark
-- A singleton remembers its key, for the day on which it is resumed.
update durable.run set singleton = %(key)s where id = %(id)s

-- name: postpone
-- A debounced run gets the newest message, with its queue, and a later time, but not later than its caller wants to
-- wait at most.
update durable.run
set message = %(message)s, body = %(body)s, queue = %(queue)s, priority = %(priority)s,
    due = least(durable.clock() + %(delay)s::interval, created_at + %(longest)s::interval)
where id = %(id)s and state = 'waiting' and reason = 'timer' and attempt = 0
returning id
