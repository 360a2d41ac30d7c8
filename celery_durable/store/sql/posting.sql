-- Where broker and store are one database: runs and their messages in one commit.

-- name: post
-- Behind the insert of the runs, in its transaction: the messages of those that may be claimed now. An insert
-- whose answer was lost is repeated with its messages, of which a second one finds nothing to do.
with sent as (
    insert into durable.message (queue, priority, payload, expires_at)
    select q.name, p.priority, p.payload, durable.clock() + q.ttl
    from unnest(%(runs)s::text[], %(queues)s::text[], %(urgencies)s::smallint[], %(payloads)s::bytea[])
        with ordinality as p (run, queue, priority, payload, number)
    join durable.queue q on q.name = p.queue
    where exists (select from durable.run r where r.id = p.run and r.state = 'pending' and r.attempt = 0)
    order by p.number
    returning queue
)
select sent.queue, sleeper.id as sleeper
from (select queue, count(*) as messages from sent group by queue) as sent
left join lateral (
    select c.id from durable.consumer c
    where c.wakeable and coalesce(c.wanted, c.queues) @> array[sent.queue] order by random() limit sent.messages
) as sleeper on true

-- name: put_away
-- The message of an attempt that is over. What the broker's consumer still acknowledges is gone then. Its id is given
-- to each table: a join that is planned while these seem to be empty reads all of them later.
with done as (
    delete from durable.claim
    where message = %(id)s and consumer = %(consumer)s and number = %(number)s
      and not exists (
          select from durable.run where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling'))
    returning message
)
delete from durable.message where id = %(id)s and exists (select from done)

-- name: put_away_unclaimed
-- The message of a run that is over, or waits, before an attempt of it has begun: it came too late, or too early.
with done as (
    delete from durable.claim
    where message = %(id)s and consumer = %(consumer)s and number = %(number)s
      and exists (
          select from durable.run where id = %(run_id)s and state not in ('pending', 'running', 'cancelling'))
    returning message
)
delete from durable.message where id = %(id)s and exists (select from done)
