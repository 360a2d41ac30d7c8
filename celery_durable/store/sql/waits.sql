-- A run that waits in the middle of its body. A wait is up to four statements in one transaction and one round
-- trip: lock the run and store the wait; start what is waited for; look, with a younger snapshot, whether it is
-- there; leave the worker if it is not. Whoever brings it locks the run first and looks at its state afterwards.

-- name: wait
-- Lock the run; store the wait. Its due time is fixed when it is first met: a replay neither extends nor
-- restarts it. A wait whose error a retry has put aside begins anew.
with mine as (
    select key, fence, state, attempt, cancel_requested from durable.run
    where key = %(run)s and fence in (%(fence)s, %(closed)s)
    for no key update
), stored as (
    insert into durable.checkpoint as c
        (run_key, key, seq, outcome, kind, due, output, codec, digest, arguments, fence, attempt, tries, clock,
         seconds, wait)
    select mine.key, %(key)s, %(seq)s, 'waiting', %(kind)s,
           coalesce(%(until)s::timestamptz, durable.clock() + %(delay)s::interval), %(output)s, %(kind)s,
           %(digest)s, %(arguments)s, %(fence)s, mine.attempt, 1, %(clock)s, 0,
           case when %(kind)s = 'children' then %(awaits)s::text::uuid end
    from mine where mine.fence = %(fence)s and mine.state = 'running' and not mine.cancel_requested
    on conflict (run_key, key) do update
    set outcome = 'waiting', kind = excluded.kind, output = excluded.output, codec = excluded.codec,
        digest = excluded.digest, arguments = excluded.arguments, error = null,
        due = case when c.outcome = 'discarded' then excluded.due else c.due end,
        clock = case when c.fence = excluded.fence then c.clock else c.clock || excluded.clock end,
        fence = excluded.fence, attempt = excluded.attempt, wait = excluded.wait
    where c.outcome in ('waiting', 'discarded')
    returning due
)
select mine.fence = %(fence)s and mine.state = 'running' as held, mine.cancel_requested,
       extract(epoch from stored.due - durable.clock())::float8 as remaining
from mine left join stored on true

-- name: start
-- Store the children of a wait, in their order, with the wait itself: none of them can end before it is there.
-- Those that may not be executed yet wait for their turn, which comes with the end of an earlier one.
insert into durable.run
    (id, task, queue, priority, state, reason, due, published_at,
     message, body, parent, root, "group", version, expires_at, deadline, wait, abreast, detached)
select new.id, new.task, new.queue, new.priority,
       case when place.later then 'waiting' when due.at > durable.clock() then 'waiting' else 'pending' end,
       case when place.later then 'turn' when due.at > durable.clock() then 'timer' end,
       case when place.later then null
            when due.at > durable.clock() then due.at
            when new.publish then durable.clock() + %(check)s::interval
            else durable.clock() end,
       case when new.publish and not place.later and not due.at > durable.clock() then durable.clock() end,
       new.message, new.body, %(parent)s, new.root, new."group", new.version,
       coalesce(new.expires_at, durable.clock() + new.expires),
       coalesce(new.deadline_at, durable.clock() + new.deadline), %(awaits)s::uuid, %(abreast)s, %(detached)s
from unnest(%(id)s::text[], %(task)s::text[], %(queue)s::text[], %(priority)s::smallint[], %(publish)s::boolean[],
            %(message)s::bytea[], %(body)s::bytea[], %(root)s::text[], %(group)s::text[],
            %(version)s::text[], %(eta)s::timestamptz[], %(countdown)s::interval[],
            %(expires_at)s::timestamptz[], %(expires)s::interval[], %(deadline_at)s::timestamptz[],
            %(deadline)s::interval[]) with ordinality
     as new (id, task, queue, priority, publish, message, body, root, "group", version, eta, countdown,
             expires_at, expires, deadline_at, deadline, number)
cross join lateral (select coalesce(new.eta, durable.clock() + new.countdown, durable.clock())) as due (at)
cross join lateral (select coalesce(%(before)s + new.number > %(abreast)s, false)) as place (later)
where exists (select from durable.run r join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s
              where r.key = %(run)s and r.fence = %(fence)s and r.state = 'running' and not r.cancel_requested
                and c.outcome = 'waiting')
order by new.number
on conflict (id) do nothing
returning id, state

-- name: start_again
-- In front of a wait that a resumed run takes up again: its children that did not succeed begin a new generation, as
-- `resume` has it, in the order of their keys; the others stay as they are. One that was taken back has nothing to go
-- on from and begins anew, with other keys and children of its own.
with mine as (
    select r.key from durable.run r join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s
    where r.key = %(run)s and r.fence = %(fence)s and r.state = 'running' and not r.cancel_requested
      and c.outcome = 'waiting'
), unfinished as materialized (
    select count(*) as runs from durable.run k where k.wait = %(awaits)s::uuid and k.finished_at is null
), target as materialized (
    select k.key, k.state, k.abreast, k.ending is not null and k.reason is distinct from 'rollback' as anew
    from durable.run k
    where k.wait = %(awaits)s::uuid and k.state in ('failed', 'cancelled') and exists (select from mine)
    order by k.key for no key update
), placed as (
    select t.*, row_number() over (order by t.key) as number,
           coalesce(row_number() over (order by t.key) + unfinished.runs > t.abreast, false) as later
    from target t, unfinished
), resumed as (
    update durable.run r
    set state = case when p.later then 'waiting' else 'pending' end, reason = case when p.later then 'turn' end,
        due = case when p.later then null
                   when p.number <= %(at_once)s then durable.clock() + %(check)s::interval else durable.clock() end,
        published_at = case when p.number <= %(at_once)s and not p.later then durable.clock() end,
        checks = 0, fence = gen_random_uuid(), generation = r.generation + 1, worker = null, pid = null,
        compensates = null, cascading = false,
        retries = 0, recoveries = 0, version = coalesce(%(version)s, r.version), cancel_requested = false,
        expires_at = null, deadline = null, finished_at = null, custom_state = null, unreported = false,
        replacements = r.replacements + case when p.anew then 1 else 0 end,
        seed = case when p.anew then gen_random_uuid() else r.seed end,
        ending = case when not p.anew then r.ending end,
        ending_reason = case when not p.anew then r.ending_reason end,
        rollbacks = case when not p.anew then r.rollbacks end,
        recoveries_before = case when not p.anew then r.recoveries_before end,
        result = case when r.ending = 'failed' and not p.anew then r.result end,
        result_type = case when r.ending = 'failed' and not p.anew then r.result_type end,
        traceback = case when r.ending = 'failed' and not p.anew then r.traceback end,
        meta = case when r.ending = 'failed' and not p.anew then r.meta end
    from placed p where r.key = p.key
    returning r.key, r.id, p.state as before, r.generation, p.anew, r.published_at is not null as publish,
              r.message, r.body
)
select key, id, before, generation, 0 as children, anew, publish, message, body from resumed order by key

-- name: forget
-- What is stored of children that begin anew.
delete from durable.checkpoint where run_key = any(%(keys)s)

-- name: collect
-- When all children of a wait are over: keep how they ended with the wait. A child that is resumed later, or
-- deleted, changes nothing for this run any more.
with mine as (
    select r.key, r.attempt
    from durable.run r join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s
    where r.key = %(run)s and r.fence = %(fence)s and r.state = 'running' and not r.cancel_requested
      and c.outcome = 'waiting'
      and not exists (select from durable.run k where k.wait = %(awaits)s::uuid and k.finished_at is null)
), ended as (
    select sum(octet_length(k.result)) > %(most)s as too_large,
           json_agg(json_build_array(k.id, k.state, k.reason, k.result_type, encode(k.result, 'base64'))
                    order by k.key) as outcomes
    from mine join durable.run k on k.wait = %(awaits)s::uuid
)
update durable.checkpoint c
set outcome = case when ended.too_large then 'error' else 'ok' end,
    output = case when ended.too_large then %(late)s
                  else convert_to(coalesce(ended.outcomes, '[]')::text, 'UTF8') end,
    codec = case when ended.too_large then %(late_codec)s else 'children' end,
    error = case when ended.too_large then %(late_error)s end,
    seconds = extract(epoch from durable.clock() - c.stored_at), attempt = mine.attempt, fence = %(fence)s
from mine cross join ended
where c.run_key = %(run)s and c.run_key = mine.key and c.key = %(key)s

-- name: receive
-- Take the oldest signal of this name, or note that the time for it is over.
with mine as (
    select r.key, r.attempt, c.due
    from durable.run r join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s
    where r.key = %(run)s and r.fence = %(fence)s and r.state = 'running' and not r.cancel_requested
      and c.outcome = 'waiting'
), arrived as (
    select s.key, s.payload, s.codec from mine join durable.signal s on s.run_key = %(run)s and s.run_key = mine.key
    where s.name = %(awaits)s and s.taken_by is null
    order by s.key limit 1
), taken as (
    update durable.signal s set taken_by = %(key)s from arrived where s.key = arrived.key
)
update durable.checkpoint c
set outcome = case when arrived.key is null then 'error' else 'ok' end,
    output = coalesce(arrived.payload, %(late)s), codec = coalesce(arrived.codec, %(late_codec)s),
    error = case when arrived.key is null then %(late_error)s end,
    seconds = extract(epoch from durable.clock() - c.stored_at), attempt = mine.attempt, fence = %(fence)s
from mine left join arrived on true
where c.run_key = %(run)s and c.run_key = mine.key and c.key = %(key)s
  and (arrived.key is not null or mine.due <= durable.clock())

-- name: leave
-- Leave the worker, unless what is waited for is there or the run is asked to stop. The fence is closed with a
-- value that only this attempt can derive: the wait, repeated after a lost answer, recognises itself.
with mine as (
    select r.key, r.fence, r.state, r.cancel_requested, c.outcome, c.output, c.codec, c.due
    from durable.run r left join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s
    where r.key = %(run)s and r.fence in (%(fence)s, %(closed)s)
), gone as (
    update durable.run r
    set state = 'waiting', reason = %(kind)s, awaits = %(awaits)s, due = mine.due, fence = %(closed)s,
        compensates = coalesce(%(compensates)s, r.compensates), worker = null, pid = null, custom_state = null
    from mine
    where r.key = mine.key and mine.fence = %(fence)s and mine.state = 'running' and not mine.cancel_requested
      and mine.outcome = 'waiting' and (mine.due is null or mine.due > durable.clock())
    returning r.key, r.attempt
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'suspended'
    from gone where a.run_key = %(run)s and a.run_key = gone.key and a.number = gone.attempt
)
select mine.fence = %(fence)s and mine.state = 'running' as held, mine.cancel_requested,
       mine.outcome, mine.output, mine.codec,
       mine.fence = %(closed)s or exists (select from gone) as "left"
from mine

-- name: wake_parent
-- After the end of a child has committed: wake its parent when it was the last one. There is no counter: of several
-- that end at once the last to commit sees them all. The parent is judged under its lock.
with parent as (
    select p.key, p.state, p.reason, p.awaits from durable.run p
    where p.id = %(parent)s
      and not exists (select from durable.run c where c.wait = %(wait)s and c.finished_at is null)
    for no key update
)
update durable.run r
set state = 'pending', reason = null, checks = 0, due = durable.clock() + %(check)s::interval,
    published_at = durable.clock(),
    -- no owner: constraints are checked on the row of the snapshot, too, in which the parent may still be executing
    worker = null, pid = null
from parent
where r.key = parent.key and parent.state = 'waiting' and parent.reason = 'children'
  and parent.awaits = %(wait)s::text
returning r.id, r.message, r.body

-- name: hold_parent
-- In front of the next: turns are given by one transaction at a time.
select key from durable.run where id = %(parent)s for no key update

-- name: next_child
-- After the end of a child: the turn of the next ones, as many as may be executed by the rows there are, so that a
-- crash leaks none. Those whose turn has come stand in front of the first one that waits for its own.
with waiting as materialized (
    select c.key from durable.run c
    where c.wait = %(wait)s and c.finished_at is null and c.state = 'waiting' and c.reason = 'turn'
    order by c.key limit 1
), free as materialized (
    select %(abreast)s - count(*) as slots from durable.run c
    where c.wait = %(wait)s and c.finished_at is null and c.key < (select key from waiting)
), next as (
    select c.key from durable.run c
    where c.wait = %(wait)s and c.finished_at is null and c.state = 'waiting' and c.reason = 'turn'
    order by c.key limit greatest((select slots from free), 0)
    for update skip locked
)
update durable.run r
set state = 'pending', reason = null, due = durable.clock() + %(check)s::interval, published_at = durable.clock()
from next where r.key = next.key
returning r.id, r.message, r.body
