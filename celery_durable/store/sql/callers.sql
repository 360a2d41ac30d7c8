-- Runs that are stored in a transaction of the caller's, on the caller's own connection.

-- name: place
-- Which database of which server this is, and whether the tables are in it. Asked on both sides.
select concat_ws('/', d.oid::text, d.datname, extract(epoch from pg_postmaster_start_time())::text) as place,
       d.datname as name,
       exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               where n.nspname = %(schema)s and c.relname = 'run') as ready
from pg_catalog.pg_database d where d.datname = current_database()

-- name: enqueue_within
-- Store one run in the caller's transaction, due a moment after now unless it is to wait: whoever stored it
-- publishes it after the commit, the keeper does when that did not happen. The clock is the start of the
-- transaction, which may be long ago. One row back: the transaction, and the state unless the id is known.
with stored as (
    insert into durable.run
        (id, task, queue, priority, state, reason, due, message, body, parent, root, "group", version, expires_at,
         deadline)
    select %(id)s, %(task)s, %(queue)s, %(priority)s::smallint,
           case when due.at is null then 'pending' else 'waiting' end,
           case when due.at is not null then 'timer' end,
           coalesce(due.at, clock.now + %(grace)s::interval),
           %(message)s, %(body)s, %(parent)s, %(root)s, %(group)s, %(version)s,
           coalesce(%(expires_at)s::timestamptz, clock.now + %(expires)s::interval),
           coalesce(%(deadline_at)s::timestamptz, clock.now + %(deadline)s::interval)
    from (select durable.clock() + (clock_timestamp() - now()) as now) as clock,
         lateral (select nullif(greatest(clock.now, coalesce(%(eta)s::timestamptz,
                                                             clock.now + %(countdown)s::interval)),
                                clock.now) as at) as due
    on conflict (id) do nothing
    returning state
)
select pg_current_xact_id()::text as transaction, (select state from stored) as state

-- name: committed
-- Which of these are there, and known to no broker: the transaction was committed, and no savepoint undone.
select id from durable.run where id = any(%(ids)s) and state = 'pending' and published_at is null

-- name: published
-- The broker has taken these; in the order of all batches, so that two of them never wait for each other.
update durable.run r set published_at = durable.clock(), due = durable.clock() + %(check)s::interval
from (select key from durable.run
      where id = any(%(ids)s) and state = 'pending' and published_at is null order by key for update) as sent
where r.key = sent.key
