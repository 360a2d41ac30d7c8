-- What people ask and do: lists, counts, one run's whole story, cancel and resume.
-- A line ending in `--? name` is a filter: it is left out unless that filter is given.

-- name: list
-- Runs, newest first. Their keys are found first, where possible in an index alone; only these rows are read.
-- One ordered index scan for each state, so that a rare state is found as fast as a common one.
select r.key, r.id, r.task, r.queue, r.priority, r.state, r.reason, r.due, r.published_at, r.custom_state,
       r.attempt, r.generation, r.retries, r.recoveries, r.cancel_requested,
       r.parent, r.root, r."group", r.version, r.tags, r.progress,
       r.created_at, r.started_at, r.claimed_at, r.finished_at, r.expires_at,
       a.hostname, coalesce(r.pid, a.pid) as pid, a.error,
       r.state in ('running', 'cancelling') and r.worker is not null
       and not exists (select from durable.worker w where w.id = r.worker) as orphaned,
       r.awaits, r.ending, durable.clock() as now
from (
    select picked.key
    from unnest(%(states)s::text[]) as wanted (state)
    cross join lateral (
        select r.key from durable.run r
        where r.key < %(before)s
          and r.state = wanted.state --? states
          and (r.ending is null or r.finished_at is not null or r.state = 'cancelling') --? as_shown
          and r.ending is not null and r.finished_at is null and r.state in ('pending', 'waiting') --? rolling_back
          and r.task = %(task)s --? task
          and r.reason = %(reason)s --? reason
          and (r.state = 'failed' or (r.state = 'waiting' and r.reason = 'retry')) --? has_error
          and not (r.state = 'failed' or (r.state = 'waiting' and r.reason = 'retry')) --? has_no_error
          and r.state in ('running', 'cancelling') --? worker
          and r.worker in (select w.id from durable.worker w where w.hostname = %(worker)s) --? worker
          and r.key > %(after)s and r.created_at >= %(since)s --? since
          and r.created_at < %(until)s --? until
          and r.key = any(%(keys)s) --? keys
          and r.id = any(%(ids)s) --? ids
          and r.key >= %(floor)s --? floor
          and r.version = %(version)s --? version
          and r.tags @> %(tags)s::jsonb --? tags
          and %(ran_on)s = any(array(select a.hostname from durable.attempt a where a.run_key = r.key)) --? ran_on
          and (r.id ilike %(words)s or r.task ilike %(words)s or r.tags::text ilike %(words)s) --? words
          and (r.id ilike %(text)s or r.task ilike %(text)s or r.tags::text ilike %(text)s or (select a.error from durable.attempt a where a.run_key = r.key and a.number = r.attempt) ilike %(text)s) --? text
        order by r.key desc limit %(limit)s) as picked
    order by picked.key desc limit %(limit)s) as page
join durable.run r on r.key = page.key
left join durable.attempt a on a.run_key = r.key and a.number = r.attempt
order by r.key desc

-- name: floor
-- The key down to which one page of a list looks when no index serves its filters; null when that is all there is.
select case when count(*) = %(window)s then min(key) end as floor
from (select key from durable.run where key < %(before)s order by key desc limit %(window)s) as looked

-- name: moment
-- A moment on the database's clock, and the keys around it by bisection over the primary key: all runs up to
-- `low` are older, all from `high` on are not. Keys and creation times grow together, except for transactions
-- that stay open after they stored a run, so the caller keeps some distance (`slack`).
with recursive moment as materialized (
    select coalesce(%(at)s::timestamptz, durable.clock() - %(ago)s::interval) as at
), search (low, high) as (
    select coalesce(min(key), 0) - 1, coalesce(max(key), 0) + 1 from durable.run
    union all
    select case when half.older then half.mid else half.low end, case when half.older then half.high else half.mid end
    from (
        select s.low, s.high, (s.low + s.high) / 2 as mid,
               (select r.created_at < (select at from moment) + %(slack)s::interval from durable.run r
                where r.key >= (s.low + s.high) / 2 order by r.key limit 1) as older
        from search s where s.high - s.low > 1) as half
)
select moment.at, search.low, search.high from search, moment order by search.high - search.low limit 1

-- name: resolve
-- Runs whose id begins with a prefix, an exact match first.
select id, task, durable.shown_state(state, ending, finished_at) as state, created_at from durable.run
where id >= %(prefix)s and id < %(end)s
order by id limit %(limit)s

-- name: counts
-- How many runs there are in each state, and for which reason; those that roll back are counted from an index of
-- their own, and are not what their rows say.
select state, reason, sum(runs)::bigint as runs from (
    select state::text, reason, count(*) as runs from durable.run group by state, reason
    union all
    select moved.state, case when moved.sign < 0 then r.reason end, sum(moved.sign)
    from durable.run r
    cross join lateral (values (r.state::text, -1), ('cancelling', 1)) as moved (state, sign)
    where r.ending is not null and r.finished_at is null and r.state in ('pending', 'waiting')
    group by 1, 2) as counted
group by state, reason having sum(runs) > 0 order by state, reason nulls first

-- name: run
-- One run, without its payloads.
select r.key, r.id, r.task, r.queue, r.priority, r.state, r.reason, r.due, r.published_at, r.custom_state,
       r.attempt, r.generation, r.retries, r.recoveries, r.cancel_requested,
       r.parent, r.root, r."group", r.version, r.tags, r.progress,
       r.created_at, r.started_at, r.claimed_at, r.finished_at, r.expires_at,
       a.hostname, coalesce(r.pid, a.pid) as pid,
       -- of one that another attempt has taken back, the last line of what went wrong
       coalesce(a.error, case when r.state = 'failed'
                              then regexp_replace(rtrim(r.traceback, E'\n'), '^.*\n', '') end) as error,
       r.state in ('running', 'cancelling') and r.worker is not null
       and not exists (select from durable.worker w where w.id = r.worker) as orphaned,
       r.awaits, r.ending, durable.clock() as now,
       coalesce(r.traceback, a.traceback) as traceback, r.result_type, octet_length(r.result) as result_bytes,
       octet_length(r.body) as body_bytes, r.forked_from, r.slot, r.slot_limit, r.slot_rate, r.slot_period, r.rollbacks,
       r.deadline
from durable.run r
left join durable.attempt a on a.run_key = r.key and a.number = r.attempt
where r.id = %(id)s

-- name: attempts
-- Every claim of a run, oldest first.
select a.number, a.hostname, a.pid, a.started_at, a.ended_at, a.outcome, a.error, a.traceback,
       extract(epoch from coalesce(a.ended_at, durable.clock()) - a.started_at)::float8 as seconds
from durable.attempt a
where a.run_key = (select key from durable.run where id = %(id)s)
order by a.number

-- name: steps
-- Every step of a run that was stored, in the order in which they were first called. A wait that nothing has ended
-- but its time, as every sleep, has lasted until then, or until now. The earlier tries of the steps that were tried
-- most come along, five thousand in all: a run has any number of steps.
select c.key, c.seq, c.outcome, c.arguments, c.attempt, c.tries, c.spent, c.error,
       case when c.outcome = 'waiting'
            then extract(epoch from least(c.due, r.finished_at, durable.clock()) - c.stored_at)::float8
            else c.seconds end as seconds,
       c.stored_at, c.codec, octet_length(c.output) as output_bytes, c.kind, c.due,
       case when c.earlier is not null
                 and sum(case when c.earlier is null then 0 else least(c.tries - 1, 50) end)
                     over (order by c.tries desc, c.seq, c.key) <= 5000 then c.earlier end as earlier
from durable.run r join durable.checkpoint c on c.run_key = r.key
where r.id = %(id)s
order by c.seq, c.stored_at

-- name: events
-- What the keeper and operators did to a run, oldest first.
select e.at, e.kind, e.actor, e.detail
from durable.event e
where e.run_key = (select key from durable.run where id = %(id)s)
order by e.key

-- name: signals
-- The signals that were sent to a run, oldest first.
select s.name, s.sent_at, s.actor, s.taken_by, octet_length(s.payload) as payload_bytes
from durable.signal s
where s.run_key = (select key from durable.run where id = %(id)s)
order by s.key

-- name: children
-- Runs that a run has started: those that are not over or did not succeed first, and how many there are in all.
select c.id, c.task, durable.shown_state(c.state, c.ending, c.finished_at) as state, c.reason,
       count(*) over () as siblings
from durable.run r
join durable.run c on c.root = coalesce(r.root, r.id) and c.root <> c.id and c.parent = r.id
where r.id = %(id)s
order by (c.state = 'succeeded'), c.key limit 20

-- name: cancel
-- Runs that nobody executes end at once, under a new fence; executing ones are asked to stop. Rows are locked by
-- key alone and judged afterwards: a state in the first `where` would miss a run that is just being claimed.
-- One that takes back what it has done is on its way already. The event's operation id tells this very write,
-- repeated after a lost answer, from somebody else's.
with target as materialized (
    select r.key, r.id, durable.shown_state(r.state, r.ending, r.finished_at) as state,
           r.cancel_requested or (r.ending is not null and r.finished_at is null) as cancel_requested
    from durable.run r
    where r.id = any(%(ids)s)
    order by r.key for no key update
), ended as (
    update durable.run r
    set state = 'cancelled', reason = %(cause)s, due = null, finished_at = durable.clock(),
        -- no owner: Postgres checks constraints on the row of the snapshot, before it looks at the one it locked
        worker = null, pid = null,
        fence = gen_random_uuid(), custom_state = null, unreported = true,
        cascading = r.awaits is not null or r.replacements > 0
    from target t where r.key = t.key and t.state in ('pending', 'waiting')
    returning r.key, durable.shown_state(r.state, r.ending, r.finished_at) as state
), asked as (
    update durable.run r set cancel_requested = true, cascading = r.awaits is not null or r.replacements > 0
    from target t where r.key = t.key and t.state in ('running', 'cancelling') and not t.cancel_requested
    returning r.key
), noted as (
    insert into durable.event (run_key, kind, actor, detail)
    select t.key, case when t.state in ('pending', 'waiting') then 'cancelled' else 'cancel_requested' end,
           %(actor)s, jsonb_build_object('operation', %(operation)s::text, 'from', t.state, 'reason', %(reason)s::text,
                                          'cause', %(cause)s::text)
    from target t where t.key in (select key from ended union all select key from asked)
), gives_up as (  -- said once more: it is not waited for what it has to take back, if that is not known yet
    insert into durable.event (run_key, kind, actor, detail)
    select r.key, 'gives up', %(actor)s, jsonb_build_object('reason', %(reason)s::text)
    from target t join durable.run r on r.key = t.key
    where %(terminate)s and t.state = 'cancelling' and t.cancel_requested and r.rollbacks is null
)
select t.id, coalesce(mine.detail ->> 'from', t.state) as before,
       coalesce(ended.state, t.state) as state,
       mine.detail is not null or t.state in ('pending', 'waiting')
       or (t.state in ('running', 'cancelling') and not t.cancel_requested) as changed
from target t
left join ended on ended.key = t.key
left join durable.event mine on mine.run_key = t.key and mine.detail ->> 'operation' = %(operation)s::text
order by t.key

-- name: executing
-- Which of these runs, and of the runs that are cancelled with them, are being executed: children that a body waits
-- for, and members of a canvas that took its place, of these in turn. One that takes back is not meant, but for a
-- replay that is to find out what there is.
with recursive going (key, id, tree, replacements) as (
    select r.key, r.id, coalesce(r.root, r.id), r.replacements from durable.run r where r.id = any(%(ids)s)
    union
    select c.key, c.id, coalesce(c.root, c.id), c.replacements
    from going g
    cross join lateral (
        select c.key
        from durable.checkpoint k join durable.run c
            on c.wait = case k.outcome when 'waiting' then convert_from(k.output, 'UTF8')::uuid else k.wait end
        where k.run_key = g.key and k.kind = 'children' and k.outcome in ('waiting', 'discarded')
          and c.finished_at is null and not c.detached
        union all
        select m.key from durable.members_of(g.id, g.tree) m where g.replacements > 0) as found
    join durable.run c on c.key = found.key
)
select r.id from going g join durable.run r on r.key = g.key 
where r.state = 'running' or (r.state = 'cancelling' and r.rollbacks is null) order by r.key

-- name: retry_now
-- Runs that wait for a retry become pending at once, as the keeper would make them later; the caller publishes
-- them. Locked by key alone and judged afterwards, so that one which is just being woken is not woken twice.
with target as materialized (
    select r.key, r.id, r.state, r.reason, r.message, r.body
    from durable.run r
    where r.id = any(%(ids)s)
    order by r.key for no key update
), woken as (
    update durable.run r
    set state = 'pending', reason = null, published_at = durable.clock(), checks = 0,
        due = durable.clock() + %(check)s::interval,
        worker = null, pid = null  -- as in `cancel`: its snapshot may show it with its owner still
    from target t where r.key = t.key and t.state = 'waiting' and t.reason = 'retry'
    returning r.key
), noted as (
    insert into durable.event (run_key, kind, actor, detail)
    select t.key, 'retried now', %(actor)s,
           jsonb_build_object('operation', %(operation)s::text, 'from', t.state, 'reason', %(reason)s::text)
    from target t where t.key in (select key from woken)
)
select t.id, coalesce(mine.detail ->> 'from', t.state) as before,
       case when woken.key is null then t.state else 'pending' end as state,
       mine.detail is not null or woken.key is not null as changed, t.message, t.body
from target t
left join woken on woken.key = t.key
left join durable.event mine on mine.run_key = t.key and mine.detail ->> 'operation' = %(operation)s::text
order by t.key

-- name: hold
-- In front of `resume`: what it judges them by is read when nobody else changes them any more.
select key from durable.run where id = any(%(ids)s) order by key for no key update

-- name: hold_singletons
-- The keys of singletons that are to be resumed, so that no caller takes them meanwhile.
insert into durable.once (task, kind, key, run)
select distinct on (r.task, r.singleton) r.task, 'singleton', r.singleton, r.id
from durable.run r
where r.id = any(%(ids)s) and r.singleton is not null and r.state in ('failed', 'cancelled')
order by r.task, r.singleton, r.key desc
on conflict (task, kind, key) do update set run = durable.once.run

-- name: take_singletons
-- Theirs again, unless another run has the key that is not over. A statement of its own: the snapshot of the one that
-- locks may be older than that run.
update durable.once o set run = r.id
from durable.run r
where r.id = any(%(ids)s) and r.singleton is not null and r.state in ('failed', 'cancelled')
  and o.task = r.task and o.kind = 'singleton' and o.key = r.singleton
  and not exists (select from durable.run other where other.id = o.run and other.finished_at is null)

-- name: resume
-- Final runs that did not succeed begin a new generation: their checkpoints stay, their counters start again,
-- and the claim may not refuse them for having expired. They count as published: the caller does it next. Children
-- of a cancelled one that the keeper has not come to yet go on; those that have been told to stop do so first.
with target as materialized (
    select r.key, r.id, r.state, r.generation, r.message, r.body, r.ending, r.reason,
           (select nullif(o.run, r.id) from durable.once o
            where o.task = r.task and o.kind = 'singleton' and o.key = r.singleton) as other,
           r.state = 'cancelled' and exists (
               select from durable.waits_to_resume(r.key) w join durable.run c on c.wait = w.wait
               where c.finished_at is null and (c.cancel_requested or c.ending is not null)) as stopping
    from durable.run r
    where r.id = any(%(ids)s)
    order by r.key
), resumed as (
    update durable.run r
    set state = 'pending', reason = null, due = durable.clock() + %(check)s::interval, published_at = durable.clock(),
        checks = 0, fence = gen_random_uuid(), generation = r.generation + 1, worker = null, pid = null,
        compensates = null,  -- not known: code that has changed left them as they were
        cascading = false,  -- else the children of the new generation would go with the old one
        retries = 0, recoveries = 0, version = coalesce(%(version)s, r.version), cancel_requested = false,
        expires_at = null, deadline = null, finished_at = null,
        custom_state = null, result = case when r.ending = 'failed' then r.result end,
        result_type = case when r.ending = 'failed' then r.result_type end,
        traceback = case when r.ending = 'failed' then r.traceback end,
        meta = case when r.ending = 'failed' then r.meta end
    from target t where r.key = t.key and t.state in ('failed', 'cancelled') and not t.stopping and t.other is null
      -- one that was taken back has nothing to go on from; one whose compensation failed goes on with the rest
      and (t.ending is null or t.reason = 'rollback')
    returning r.key, r.generation
)
select t.key, t.id, coalesce(mine.detail ->> 'from', t.state) as before,
       case when resumed.key is null then t.state else 'pending' end as state,
       coalesce(resumed.generation, t.generation) as generation,
       resumed.key is not null as now, mine.detail is not null or resumed.key is not null as changed,
       t.stopping and t.ending is null as stopping, t.other, coalesce((mine.detail ->> 'children')::integer, 0) as children,
       t.message, t.body
from target t
left join resumed on resumed.key = t.key
left join durable.event mine on mine.run_key = t.key and mine.detail ->> 'operation' = %(operation)s::text
order by t.key

-- name: children_to_resume
-- How many children that did not succeed each of these runs starts again when it is resumed and waits for them.
select r.id, count(*) as children
from durable.run r
cross join lateral durable.waits_to_resume(r.key) w
join durable.run c on c.wait = w.wait and c.state in ('failed', 'cancelled')
where r.id = any(%(ids)s) and r.state in ('failed', 'cancelled') and r.ending is null
group by r.id

-- name: resume_discard
-- The third statement of a resume: errors after the last successful step or wait are put aside, as a retry does, and
-- so are waits for children that are to be taken up again; each keeps which wait it is. Of a run that takes back what
-- it has done only the errors of compensations are: what led to these has to come back. Its snapshot is younger than
-- the locks of the first, or the last error of an attempt that just ended is missed.
with resumed as materialized (
    select r.run_key, r.before, r.generation, r.children, run.ending is not null as rolls_back, run.rollbacks,
           (select a.error from durable.attempt a where a.run_key = run.key and a.number = run.attempt) as error
    from unnest(%(keys)s::bigint[], %(before)s::text[], %(generations)s::integer[], %(children)s::integer[])
         as r (run_key, before, generation, children)
    join durable.run run on run.key = r.run_key
), again as materialized (
    select r.run_key, w.key, w.wait from resumed r cross join lateral durable.waits_to_resume(r.run_key) w
    where not r.rolls_back
), aside as materialized (
    select c.run_key, c.key from resumed r join durable.checkpoint c on c.run_key = r.run_key
    where c.outcome = 'error'
      and case when r.rolls_back then c.key = any(r.rollbacks) else
          c.seq > coalesce((select max(coalesce(ok.behind, ok.seq - 1)) from durable.checkpoint ok
                            where ok.run_key = r.run_key and ok.outcome in ('ok', 'waiting')
                              and (c.error is distinct from r.error
                                   or starts_with(c.key, durable.branch_of(ok.key)))
                              and not exists (select from again
                                              where again.run_key = ok.run_key and again.key = ok.key
                                                and ok.outcome = 'ok')), 0) end
    union
    select run_key, key from again
), discarded as (
    update durable.checkpoint c
    set outcome = 'discarded', spent = c.tries, wait = again.wait,
        output = case when again.key is null then c.output else convert_to(again.wait::text, 'UTF8') end,
        codec = case when again.key is null then c.codec else 'again' end
    from aside left join again on again.run_key = aside.run_key and again.key = aside.key
    where c.run_key = aside.run_key and c.key = aside.key
    returning c.run_key, c.key
)
insert into durable.event (run_key, kind, actor, detail)
select r.run_key, 'resumed', %(actor)s,
       jsonb_build_object('operation', %(operation)s::text, 'from', r.before, 'reason', %(reason)s::text,
                          'generation', r.generation, 'children', r.children,
                          'discarded', coalesce((select jsonb_agg(d.key order by d.key) from discarded d
                                                 where d.run_key = r.run_key), '[]'))
from resumed r

-- name: stats_queues
-- What waits for a worker, by queue, and for how long the first of it has.
select queue, count(*) as runs, extract(epoch from durable.clock() - min(coalesce(published_at, due)))::float8 as seconds
from durable.run where state = 'pending'
group by queue order by runs desc, queue

-- name: stats_tasks
-- What ended within a while, by task: outcomes, and how long a run took from its first claim to its end.
select task, count(*) filter (where state = 'succeeded') as succeeded,
       count(*) filter (where state = 'failed') as failed,
       count(*) filter (where state = 'cancelled') as cancelled,
       percentile_cont(0.5) within group (order by seconds) as median_seconds,
       percentile_cont(0.95) within group (order by seconds) as slow_seconds
from (select task, state, extract(epoch from finished_at - started_at)::float8 as seconds
      from durable.run
      where state in ('succeeded', 'failed', 'cancelled') and finished_at >= durable.clock() - %(age)s::interval) as ended
group by task order by count(*) desc, task

-- name: stats_workers
-- Live worker processes and what they execute.
select w.hostname, w.pid, extract(epoch from durable.clock() - w.beat_at)::float8 as silent,
       (select count(*) from durable.run r where r.worker = w.id and r.state in ('running', 'cancelling')) as runs
from durable.worker w order by w.hostname, w.id

-- name: stats_slots
-- Keys that somebody waits for or holds, those with most waiting runs first.
select slot, count(*) filter (where state in ('running', 'cancelling')) as running,
       count(*) filter (where state = 'waiting' and reason = 'slot') as waiting
from durable.run where slot is not null and state in ('running', 'cancelling', 'waiting')
group by slot order by waiting desc, slot limit 50

-- name: forks
-- Runs that were forked from this one, oldest first.
select id from durable.run where forked_from = %(id)s order by key

-- name: keys
-- Keys that stand for this run.
select kind, key, expires_at from durable.once where run = %(id)s order by kind, key

-- name: replayable
-- What a replay of a run begins with, and what its body has raised last.
select key, id, task, state, version, attempt, generation, retries, recoveries, seed, revision, replacements,
       message, body, ending, durable.clock() as now,
       (select a.error from durable.attempt a
        where a.run_key = run.key and a.error is not null and a.outcome is distinct from 'lost'
        order by a.number desc limit 1) as error
from durable.run where id = %(id)s

-- name: history
-- What it then meets, as a claim reads it.
select key, seq, outcome, output, codec, digest, arguments, tries, spent, clock, kind, due,
       too_late
from durable.checkpoint where run_key = %(run)s order by seq

-- name: history_if_resumed
-- The same of a run that is over, as a resume would leave it: errors that it puts aside are.
select c.key, c.seq,
       case when c.outcome = 'error'
                 and c.seq > coalesce((select max(coalesce(ok.behind, ok.seq - 1)) from durable.checkpoint ok
                                       where ok.run_key = c.run_key and ok.outcome in ('ok', 'waiting')
                                         and (c.error is distinct from a.error
                                              or starts_with(c.key, durable.branch_of(ok.key)))), 0)
            then 'discarded' else c.outcome end as outcome,
       c.output, c.codec, c.digest, c.arguments, c.tries, c.spent, c.clock, c.kind, c.due, c.too_late
from durable.checkpoint c
join durable.run r on r.key = c.run_key
left join durable.attempt a on a.run_key = r.key and a.number = r.attempt
where c.run_key = %(run)s order by c.seq

-- name: payloads
-- What a run was called with and what it ended with, for an export.
select message, body, result, result_type from durable.run where id = %(id)s

-- name: outputs
-- What its steps stored.
select c.key, c.outcome, c.output, c.codec from durable.checkpoint c
where c.run_key = (select key from durable.run where id = %(id)s)
order by c.seq, c.stored_at
