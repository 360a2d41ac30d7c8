-- A fork: a new run that begins with the checkpoints another one has before a chosen step.

-- name: source
-- The run to be forked, as it stands.
select key, id, task, state, revision, replacements, message, body, ending is not null as taken_back
from durable.run where id = %(id)s

-- name: steps
-- Its stored steps, in the order in which they were first called.
select key, seq, outcome, codec, clock, kind from durable.checkpoint where run_key = %(run)s order by seq, stored_at

-- name: lock
-- Keep the source as it was read: whatever would change or delete it waits for this transaction.
select key from durable.run
where key = %(run)s and revision = %(revision)s and replacements = %(replacements)s
for share

-- name: fork
-- The new run. It has the random seed of its source, and its own id, attempts, counters and links. It counts as
-- published: the caller does it next.
insert into durable.run
    (id, task, queue, priority, state, due, published_at, message, body, root, version, seed, tags, forked_from,
     slot, slot_limit, slot_rate, slot_period, slot_rank)
select %(id)s, task, queue, priority, 'pending', durable.clock() + %(check)s::interval, durable.clock(),
       %(message)s, %(body)s, %(id)s, %(version)s, seed, tags, id,
       slot, slot_limit, slot_rate, slot_period, slot_rank
from durable.run where key = %(run)s
on conflict (id) do nothing
returning key

-- name: seed
-- Its first checkpoints: copies, some with another value. One of them carries every time that the source has read
-- from the clock up to there, in the order in which they were read.
insert into durable.checkpoint
    (run_key, key, seq, kind, due, outcome, output, codec, digest, arguments, fence, attempt, tries, spent, error,
     clock, seconds, stored_at, behind, too_late)
select %(fork)s, c.key, c.seq, c.kind, c.due, case when o.key is null then c.outcome else 'ok' end,
       case when o.key is null then c.output else o.output end,
       case when o.key is null then c.codec else o.codec end,
       c.digest, c.arguments, c.fence, 0, c.tries, c.spent, case when o.key is null then c.error end,
       case when c.key = %(carrier)s then %(clock)s::timestamptz[] end, c.seconds, c.stored_at, c.behind,
       c.too_late
from durable.checkpoint c
left join unnest(%(keys)s::text[], %(outputs)s::bytea[], %(codecs)s::text[]) as o (key, output, codec) on o.key = c.key
where c.run_key = %(run)s and c.key = any(%(kept)s)

-- name: note
-- Both runs tell of the fork.
insert into durable.event (run_key, kind, actor, detail)
values (%(run)s, 'forked', %(actor)s, %(source_detail)s::jsonb), (%(fork)s, 'fork', %(actor)s, %(fork_detail)s::jsonb)
