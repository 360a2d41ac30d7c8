-- The broker's queues, as everybody uses them: declare, publish, count, purge.

-- name: ping
-- Whether the server answers.
select 1 as one

-- name: declare_queue
-- A declaration counts as a use. Options that are declared differently take the newest value.
insert into durable.queue as q (name, auto_delete, expires, ttl)
values (%(queue)s, %(auto_delete)s, %(expires)s::interval, %(ttl)s::interval)
on conflict (name) do update
set auto_delete = excluded.auto_delete, expires = excluded.expires, ttl = excluded.ttl, used_at = excluded.used_at
where (q.auto_delete, q.expires, q.ttl) is distinct from (excluded.auto_delete, excluded.expires, excluded.ttl)
   or q.expires is not null or q.auto_delete

-- name: delete_queue
-- The queue, its bindings and its messages; what is claimed stays with its consumer until that is done with it.
with gone as (
    delete from durable.queue where name = %(queue)s
), unbound as (
    delete from durable.binding where queue = %(queue)s
)
delete from durable.message m
where m.queue = %(queue)s and m.holder is null
  and not exists (select from durable.claim c where c.message = m.id)

-- name: bind
-- Let an exchange's messages reach a queue.
insert into durable.binding (exchange, kind, routing_key, queue, pattern)
values (%(exchange)s, %(kind)s, %(routing_key)s, %(queue)s, %(pattern)s)
on conflict do nothing

-- name: unbind
-- Undo a binding.
delete from durable.binding
where exchange = %(exchange)s and queue = %(queue)s and routing_key = %(routing_key)s

-- name: unbind_all
-- An exchange is deleted.
delete from durable.binding where exchange = %(exchange)s

-- name: bindings
-- What an exchange's messages reach.
select routing_key, pattern, queue from durable.binding where exchange = %(exchange)s order by queue, routing_key

-- name: state_of_queue
-- What a passive declaration tells: messages that wait, consumers.
select (select count(*) from durable.message m where m.queue = q.name and m.holder is null
          and not exists (select from durable.claim c where c.message = m.id)) as messages,
       (select count(*) from durable.consumer where queues @> array[q.name]) as consumers
from durable.queue q where q.name = %(queue)s

-- name: has_messages
-- Whether anything waits in a queue.
select exists (
    select from (
        select from durable.message m
        where m.queue = %(queue)s and m.holder is null
          and not exists (select from durable.claim c where c.message = m.id)
        order by m.priority, m.id limit 1) as first) as found

-- name: purge
-- Remove the messages that wait.
delete from durable.message m
where m.queue = %(queue)s and m.holder is null
  and not exists (select from durable.claim c where c.message = m.id)

-- name: send
-- One message to one queue. Returns no row when there is no such queue, and otherwise a consumer that sleeps, to
-- be woken when this is committed: a NOTIFY in this commit would queue all commits of the server behind it.
with sent as (
    insert into durable.message (queue, priority, payload, expires_at)
    select q.name, %(priority)s, %(payload)s, durable.clock() + least(%(expires)s::interval, q.ttl)
    from durable.queue q where q.name = %(queue)s
    returning queue
)
select sent.queue, (
    select c.id from durable.consumer c
    where c.wakeable and coalesce(c.wanted, c.queues) @> array[sent.queue] order by random() limit 1
) as sleeper
from sent

-- name: send_many
-- Many messages, each to a queue, in the order given. As many consumers are woken as there is something for.
with sent as (
    insert into durable.message (queue, priority, payload, expires_at)
    select q.name, m.priority, m.payload, durable.clock() + least(m.expires, q.ttl)
    from unnest(%(queues)s::text[], %(urgencies)s::smallint[], %(payloads)s::bytea[], %(lives)s::interval[])
        with ordinality as m (queue, priority, payload, expires, number)
    join durable.queue q on q.name = m.queue
    order by m.number
    returning queue
)
select sent.queue, sleeper.id as sleeper
from (select queue, count(*) as messages from sent group by queue) as sent
left join lateral (
    select c.id from durable.consumer c
    where c.wakeable and coalesce(c.wanted, c.queues) @> array[sent.queue] order by random() limit sent.messages
) as sleeper on true

-- name: route
-- One message to every queue that is bound to an exchange and matches, the same way.
with sent as (
    insert into durable.message (queue, priority, payload, expires_at)
    select q.name, %(priority)s, %(payload)s, durable.clock() + least(%(expires)s::interval, q.ttl)
    from durable.queue q
    where q.name in (
        select b.queue from durable.binding b
        where b.exchange = %(exchange)s
          and case b.kind when 'fanout' then true when 'topic' then %(routing_key)s ~ b.pattern
                          else b.routing_key = %(routing_key)s end)
    returning queue
)
select sent.queue, (
    select c.id from durable.consumer c
    where c.wakeable and coalesce(c.wanted, c.queues) @> array[sent.queue] order by random() limit 1
) as sleeper
from sent

-- name: wake
-- Tell sleeping consumers where to look. A transaction of its own, which writes nothing and waits for no disk.
select pg_notify('durable_consumer_' || w.id, case when octet_length(w.queue) < 7000 then 'queue:' || w.queue else '' end)
       as woken
from unnest(%(sleepers)s::bigint[], %(queues)s::text[]) as w (id, queue)

-- name: queues
-- Every queue, for people: what waits, what is being worked on, who consumes.
select q.name, q.expires, coalesce(m.ready, 0) as ready, coalesce(m.held, 0) as held,
       extract(epoch from durable.clock() - m.oldest)::double precision as waiting,
       (select count(*) from durable.consumer c where c.queues @> array[q.name]) as consumers
from durable.queue q
left join (
    select m.queue, count(*) filter (where holder is null) as ready, count(holder) as held,
           min(sent_at) filter (where holder is null) as oldest
    from (select m.queue, m.sent_at, coalesce(c.consumer, m.holder) as holder
          from durable.message m left join durable.claim c on c.message = m.id) as m
    group by m.queue) m on m.queue = q.name
order by q.name

-- name: redrive
-- Put a queue's dead letters back into it, as new. Every consumer of the queue is told from where on to look: they
-- have been past these numbers.
with back as (
    update durable.message m set queue = %(queue)s, returns = 0
    where m.queue = %(queue)s || '.dead' and m.holder is null
      and not exists (select from durable.claim c where c.message = m.id)
    returning m.id
), first as materialized (
    select count(*) as messages, min(id) as id from back
)
select messages, (select count(pg_notify('durable_consumer_' || c.id, 'back:' || first.id))
                  from durable.consumer c where c.queues @> array[%(queue)s] and first.id is not null) as told
from first
