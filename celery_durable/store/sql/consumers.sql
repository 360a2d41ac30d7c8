-- A consuming process: its lease, its claims, and the cleaning up after those that are gone.

-- name: plan_by_index
-- A queue's table is empty in one moment and large in the next, so that its statistics are always wrong: whatever
-- they say, every statement of a consumer is a few short index scans, whatever its parameters: one plan will do. One
-- that is refused and taken all the same seems to cost so much that Postgres would compile it first, which takes a
-- third of a second.
select set_config(setting, value, false) as value
from (select setting, 'off' as value
      from unnest('{enable_seqscan,enable_bitmapscan,enable_hashjoin,enable_mergejoin,enable_sort,jit}'::text[]) s (setting)
      union all select 'plan_cache_mode', 'force_generic_plan') as s

-- name: register
-- A new consumer; its id is used once, so that the claims of one that was declared dead are nobody's.
insert into durable.consumer (hostname, pid, backend, queues)
values (%(hostname)s, %(pid)s, case when %(listens)s then pg_backend_pid() end, %(names)s::text[])
returning id

-- name: beat
-- Renew the lease; no row means that this consumer was declared dead.
update durable.consumer
set beat = beat + 1, beat_at = durable.clock(), wakeable = cardinality(%(wanted)s::text[]) > 0,
    queues = %(names)s::text[], wanted = %(wanted)s::text[],
    backend = case when %(listens)s then pg_backend_pid() end
where id = %(consumer)s
returning id

-- name: leave
-- A consumer that ends: its claims are nobody's at once, and are not counted as lost.
with gone as (
    delete from durable.consumer where id = %(consumer)s returning queues
), used as (
    update durable.queue q set used_at = durable.clock(),
        expires = case when q.auto_delete then least(q.expires, %(grace)s::interval) else q.expires end
    from gone where q.name = any(gone.queues) and (q.expires is not null or q.auto_delete)
), held as (
    delete from durable.claim where consumer = %(consumer)s returning message, number
)
update durable.message m set claims = held.number from held
where m.id = any(array(select message from held)) and m.id = held.message
returning m.queue, m.id as first

-- name: claim
-- Lease the first messages of some queues: highest priority first, oldest first. Each queue and priority is an
-- ordered scan of its own, which begins where this consumer knows that nothing is left: with a transaction held
-- open, what is dead cannot be cleaned away, and every claim would read all of it again. The bounds are compared as
-- rows, for with `queue = …` the planner would take the order by id from the primary key, and read all queues; and the
-- claim is asked for with a subquery, for an anti-join may read all claims, dead ones too, instead of looking one up.
-- A message that somebody claimed while this statement began comes without a number: there may be others behind it.
with chosen as materialized (
    select m.*
    from unnest(%(queues)s::text[], %(priorities)s::smallint[], %(floors)s::bigint[]) as w (queue, priority, floor)
    cross join lateral (
        select id, queue, priority, claims, payload from durable.message m
        where (m.queue, m.priority, m.id) > (w.queue, w.priority, w.floor)
          and (m.queue, m.priority) <= (w.queue, w.priority)
          and m.holder is null and (m.expires_at is null or m.expires_at > durable.clock())
          and (select c.message from durable.claim c where c.message = m.id) is null
        order by m.queue, m.priority, m.id
        limit %(limit)s
        for update of m skip locked
    ) as m
    where exists (select from durable.consumer where id = %(consumer)s)
    limit %(limit)s
), taken as (
    insert into durable.claim (message, consumer, number)
    select id, %(consumer)s, claims + 1 from chosen
    on conflict do nothing
    returning message, number
)
select c.id, c.queue, c.priority, t.number, case when t.number is not null then c.payload end as payload
from chosen c left join taken t on t.message = c.id

-- name: ready
-- Which of these scans have something to claim, what is first, and how far message numbers have come.
select w.queue, w.priority, m.id, head.last_value as head
from (select last_value from durable.message_id_seq) as head
left join (
    unnest(%(queues)s::text[], %(priorities)s::smallint[], %(floors)s::bigint[]) as w (queue, priority, floor)
    cross join lateral (
        select m.id from durable.message m
        where (m.queue, m.priority, m.id) > (w.queue, w.priority, w.floor)
          and (m.queue, m.priority) <= (w.queue, w.priority)
          and m.holder is null and (m.expires_at is null or m.expires_at > durable.clock())
          and (select c.message from durable.claim c where c.message = m.id) is null
        order by m.queue, m.priority, m.id
        limit 1
    ) as m
) on true

-- name: settle
-- Acknowledge: these claims, and no later ones of the same messages. Not by joins: where the tables seem to be small
-- when they are planned, one of them reads all of an index, with what is dead. What is joined below has its ids twice.
with done as (
    delete from durable.claim
    where message = any(%(ids)s::bigint[]) and consumer = %(consumer)s
      and number = (%(numbers)s::integer[])[array_position(%(ids)s::bigint[], message)]
    returning message
)
delete from durable.message where id = any(array(select message from done))

-- name: reconcile
-- Claims whose answer was lost: this consumer holds them and does not know.
with unheard as (
    delete from durable.claim
    where consumer = %(consumer)s and not message = any(%(ids)s::bigint[])
    returning message, number
)
update durable.message m set claims = unheard.number from unheard
where m.id = any(array(select message from unheard)) and m.id = unheard.message
returning m.queue, m.id as first

-- name: give_back
-- Hand messages to others. One that comes back too often is poison: it goes to its queue's dead-letter queue.
with mine as (
    delete from durable.claim c
    using unnest(%(ids)s::bigint[], %(numbers)s::integer[], %(counted)s::boolean[]) as r (id, number, counted)
    where c.message = any(%(ids)s::bigint[])
      and c.message = r.id and c.number = r.number and c.consumer = %(consumer)s
    returning c.message, c.number, r.counted
), back as (
    update durable.message m
    set claims = r.number,
        returns = case when r.counted and m.returns >= %(max_returns)s then 0
                       when r.counted then m.returns + 1 else m.returns end,
        expires_at = case when r.counted and m.returns >= %(max_returns)s then null else m.expires_at end,
        queue = case when r.counted and m.returns >= %(max_returns)s then m.queue || '.dead' else m.queue end
    from mine as r
    where m.id = any(%(ids)s::bigint[]) and m.id = r.message
    returning m.queue, m.id
), missing as (
    insert into durable.queue (name) select distinct queue from back where queue like '%%.dead' on conflict do nothing
)
select queue, min(id) as first from back group by queue

-- name: rouse
-- Let all consumers of some queues look again, from where messages have come back.
select pg_notify('durable_consumer_' || id, 'back:' || %(first)s::bigint) as woken
from durable.consumer where queues && %(names)s::text[]

-- name: consumers
-- Every consumer's heartbeat, and whether the session that renewed its lease has ended since.
select c.id, c.beat, c.backend is not null and not exists (
           select from pg_stat_activity a where a.pid = c.backend) as parted,
       durable.clock() as now
from durable.consumer c

-- name: bury
-- Consumers that are dead, unless their lease was renewed meanwhile.
with dead as (
    delete from durable.consumer c
    using unnest(%(ids)s::bigint[], %(beats)s::bigint[]) as d (id, beat)
    where c.id = d.id and c.beat = d.beat
    returning c.id, c.queues
), used as (
    update durable.queue q set used_at = durable.clock(),
        expires = case when q.auto_delete then least(q.expires, %(grace)s::interval) else q.expires end
    from dead where q.name = any(dead.queues) and (q.expires is not null or q.auto_delete)
)
select id from dead

-- name: recover
-- The claims of consumers that are no more, whatever became of them. Repeated: a claim may have been under way.
-- They are read page by page, which the condition on `ctid` says where sequential scans are off: by the index, with
-- a transaction held open, each dead one would cost a page. Those of the release before stand in the message itself.
with orphaned as (
    delete from durable.claim
    where message in (
        select c.message from durable.claim c
        where c.ctid >= '(0,0)' and not exists (select from durable.consumer k where k.id = c.consumer)
        limit 10000 for update skip locked)
    returning message, number
), older as materialized (
    select id, claims from durable.message h
    where h.holder is not null and not exists (select from durable.consumer c where c.id = h.holder)
    limit 10000 for update skip locked
), found as materialized (
    select message as id, number from orphaned union all select id, claims from older
), lost as (
    update durable.message m
    set holder = null, claims = found.number,
        returns = case when m.returns >= %(max_returns)s then 0 else m.returns + 1 end,
        expires_at = case when m.returns >= %(max_returns)s then null else m.expires_at end,
        queue = case when m.returns >= %(max_returns)s then m.queue || '.dead' else m.queue end
    from found
    where m.id = any(array(select id from found)) and m.id = found.id
    returning m.queue, m.id
), missing as (
    insert into durable.queue (name) select distinct queue from lost where queue like '%%.dead' on conflict do nothing
)
select queue, count(*) as messages, min(id) as first from lost group by queue

-- name: expire
-- Messages that nobody claimed in time.
delete from durable.message
where id = any(array(
    select id from durable.message m
    where expires_at <= durable.clock() and holder is null
      and (select c.message from durable.claim c where c.message = m.id) is null
    order by expires_at limit 10000 for update of m skip locked))

-- name: prune_queues
-- Queues that nobody consumes any more: those that expire, and those of consumers that have left.
with gone as (
    delete from durable.queue q
    where q.used_at < durable.clock() - coalesce(q.expires, case when q.auto_delete then %(grace)s::interval end)
      and not exists (select from durable.consumer c where c.queues @> array[q.name])
    returning q.name
), unbound as (
    delete from durable.binding b using gone where b.queue = gone.name
)
select name from gone

-- name: empty
-- What was left in a queue that is gone, unless it was declared again.
delete from durable.message m
where queue = %(queue)s and holder is null and not exists (select from durable.queue where name = %(queue)s)
  and not exists (select from durable.claim c where c.message = m.id)

-- name: used
-- Somebody has just stopped consuming these queues: one that goes with its last consumer has little time left, until
-- it is declared again. One that nobody has consumed yet keeps what it was declared with, as in RabbitMQ.
update durable.queue set used_at = durable.clock(),
    expires = case when auto_delete then least(expires, %(grace)s::interval) else expires end
where name = any(%(names)s::text[]) and (expires is not null or auto_delete)
