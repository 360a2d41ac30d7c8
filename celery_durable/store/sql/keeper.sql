-- What keeps runs moving: heartbeats, the leader lease, timers, recovery, lost messages, retention.

-- name: register_worker
-- A worker process comes to life under a random token; a dead id never comes back.
insert into durable.worker (token, hostname, pid, version, code)
values (%(token)s, %(hostname)s, %(pid)s, %(version)s, %(code)s)
on conflict (token) do update set hostname = excluded.hostname
returning id

-- name: beat
-- The heartbeat touches the worker's own row only. No row back: this worker was declared dead.
update durable.worker set beat = beat + 1, beat_at = durable.clock(), reserved = %(reserved)s
where token = %(token)s
returning id,
    exists (select from durable.run where state = 'waiting' and due < durable.clock() - interval '2 s')
    or exists (select from durable.run
               where state = 'pending' and published_at is null and due < durable.clock() - interval '2 s')
    as backlog

-- name: retire_worker
-- A clean end: the worker's row goes, and what it still owned is handed on, without counting a recovery.
with gone as (
    delete from durable.worker where token = %(token)s returning id
), owned as (
    select r.key from durable.run r join gone on gone.id = r.worker
    where r.state in ('running', 'cancelling') order by r.key for update of r
), released as (
    update durable.run r
    set state = case when cancel_requested then 'cancelled' else 'pending' end,
        reason = case when cancel_requested then durable.cause_of(r.key) end,
        due = case when not cancel_requested then durable.clock() end,
        finished_at = case when cancel_requested then durable.clock() end, unreported = cancel_requested,
        published_at = null, fence = gen_random_uuid(), worker = null, pid = null, custom_state = null
    from owned where r.key = owned.key
    returning r.*
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'released'
    from released r where a.run_key = r.key and a.number = r.attempt
), lead as (
    delete from durable.leader where holder in (select id from gone)
)
select id from released

-- name: lead
-- Take or renew the leader lease, and see the heartbeats as they stand; who leads compares them with what it saw a
-- lease ago. A new holder opens a new term, which every keeper write of its own names.
with led as (
    insert into durable.leader (holder, term, expires_at)
    select w.id, 1, durable.clock() + %(lease)s::interval from durable.worker w where w.token = %(token)s
    on conflict (single) do update
    set holder = excluded.holder, expires_at = excluded.expires_at,
        term = leader.term + case when leader.holder = excluded.holder then 0 else 1 end
    where leader.holder = excluded.holder or leader.expires_at < durable.clock()
       or not exists (select from durable.worker where id = leader.holder)
    returning term
)
select id, beat, durable.clock() as now, (select term from led) as term from durable.worker

-- name: look
-- The leader's one small query: is there anything to do, and when is the next timer?
select
    (select extract(epoch from due - durable.clock())::float8
     from durable.run where state = 'waiting' and due is not null order by due limit 1) as next_timer,
    exists (select from durable.run
            where state = 'pending' and published_at is null and due <= durable.clock()) as unpublished,
    exists (select from durable.run
            where state = 'pending' and published_at is not null and due <= durable.clock()) as unclaimed,
    exists (select from durable.outbox where created_at < durable.clock() - interval '10 s') as outbox,
    exists (select from durable.run
            where unreported and finished_at < durable.clock() - interval '10 s') as unreported,
    exists (select from durable.chord where done_at is null and check_at <= durable.clock()) as chords,
    exists (select from durable.run where state = 'waiting' and reason = 'children') as parents,
    exists (select from durable.run where cascading) as cascading,
    exists (select from durable.run
            where deadline <= durable.clock() and finished_at is null and not cancel_requested
              and ending is null) as overdue,
    exists (select from durable.run where state = 'waiting' and reason = 'slot' and slot > '') as slots,
    exists (select from durable.leader
            where term = %(term)s and expires_at > durable.clock()) as leading

-- name: bury
-- Workers whose heartbeat stood still for a whole lease under the leader's eyes.
delete from durable.worker w
using unnest(%(ids)s::bigint[], %(beats)s::bigint[]) as seen (id, beat)
where w.id = seen.id and w.beat = seen.beat
  and exists (select from durable.leader where term = %(term)s and expires_at > durable.clock())
returning w.id

-- name: recover_orphans
-- Runs whose worker is no longer there, found by anti-join each time: it misses none, however often it runs.
-- The lock is taken for the worker that was judged: an anti-join is not repeated for a row that changed between
-- the snapshot and its lock, and would take a run from a live worker that has just claimed it.
with lost as materialized (
    select r.key, r.worker from durable.run r
    where r.state in ('running', 'cancelling') and not exists (select from durable.worker w where w.id = r.worker)
      and exists (select from durable.leader where term = %(term)s and expires_at > durable.clock())
    order by r.key limit %(limit)s
), orphan as (
    select r.key from durable.run r join lost on lost.key = r.key and lost.worker = r.worker
    where r.state in ('running', 'cancelling')
    order by r.key for update of r skip locked
), recovered as (
    update durable.run r
    set state = case when cancel_requested and ending is null then 'cancelled'
                     when recoveries + 1 > %(max_recoveries)s then 'failed' else 'pending' end,
        reason = case when cancel_requested and ending is null then durable.cause_of(r.key)
                      when recoveries + 1 > %(max_recoveries)s then 'exhausted' end,
        due = case when not (cancel_requested and ending is null) and recoveries + 1 <= %(max_recoveries)s
                   then durable.clock() end,
        finished_at = case when (cancel_requested and ending is null) or recoveries + 1 > %(max_recoveries)s
                           then durable.clock() end,
        result = case when recoveries + 1 > %(max_recoveries)s then %(result)s else result end,
        result_type = case when recoveries + 1 > %(max_recoveries)s then %(result_type)s else result_type end,
        published_at = null,
        unreported = (cancel_requested and ending is null) or recoveries + 1 > %(max_recoveries)s,
        recoveries = recoveries + 1, fence = gen_random_uuid(), worker = null, pid = null, custom_state = null
    from orphan where r.key = orphan.key
    returning r.*
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'lost', error = 'the worker was lost'
    from recovered r where a.run_key = r.key and a.number = r.attempt
), noted as (
    insert into durable.event (run_key, kind, detail)
    select key, 'recovered', jsonb_build_object('attempt', attempt, 'error', 'the worker was lost', 'state', state)
    from recovered
)
select id, state, recoveries, message, body from recovered

-- name: wake
-- Timers that are due become pending; whoever takes them publishes them. Every worker may drain these. A tenth of
-- each batch is what became due last: a single timer does not wait until a hundred thousand before it are drained.
with oldest as (
    select key from durable.run
    where state = 'waiting' and due <= durable.clock()
    order by due limit %(limit)s::integer - %(limit)s::integer / 10 for update skip locked
), newest as (
    select key from durable.run
    where state = 'waiting' and due <= durable.clock()
    order by due desc limit %(limit)s::integer / 10 for update skip locked
), due as (
    select key from oldest union select key from newest
)
update durable.run r
set state = 'pending', reason = null, published_at = durable.clock(), checks = 0,
    due = durable.clock() + %(check)s::interval
from due where r.key = due.key
returning r.id, r.message, r.body

-- name: parents
-- Runs that wait for their children, and whether anything is left to wait for: looked at again and again, for
-- whoever ended the last child may have died, or be none that wakes parents.
select p.key, p.id, p.awaits::uuid as wait,
       not exists (select from durable.run c where c.wait = p.awaits::uuid and c.finished_at is null) as ready,
       (select c.abreast from durable.run c
        where c.wait = p.awaits::uuid and c.finished_at is null and c.state = 'waiting' and c.reason = 'turn'
        limit 1) as abreast
from durable.run p
where p.state = 'waiting' and p.reason = 'children' and p.key > %(after)s
order by p.key limit %(limit)s

-- name: overdue
-- Runs that are not over at their deadline; those that take back what they have done are on their way already.
select id from durable.run
where deadline <= durable.clock() and finished_at is null and not cancel_requested and ending is null
order by deadline limit %(limit)s

-- name: forsaken
-- Unfinished children of cancelled runs, which go with them: found by the wait that those were in, or were to take
-- up again, and as members of the canvas that took their place. One that takes back what it has done first is
-- cancelled already.
select c.id, p.id as parent
from durable.run p cross join lateral durable.going_with(p.key, p.id, coalesce(p.root, p.id), p.replacements) as w
join durable.run c on c.key = w.key
where p.cascading and (%(ids)s::text[] is null or c.id = any(%(ids)s))
limit %(limit)s

-- name: cascaded
-- Their children are cancelled, or were asked to stop: nothing is left to do for these.
update durable.run set cascading = false
where key in (
    select p.key from durable.run p
    where p.cascading
      and not exists (select from durable.going_with(p.key, p.id, coalesce(p.root, p.id), p.replacements))
    order by p.key for no key update skip locked)
returning id

-- name: publishable
-- Pending runs that the broker does not know of.
with due as (
    select key from durable.run
    where state = 'pending' and published_at is null and due <= durable.clock()
    order by due limit %(limit)s for update skip locked
)
update durable.run r
set published_at = durable.clock(), due = durable.clock() + %(check)s::interval * power(2, least(r.checks, 8))
from due where r.key = due.key
returning r.id, r.message, r.body

-- name: expire_due
-- Pending runs that nobody claimed in time.
update durable.run
set state = 'cancelled', reason = 'expired', due = null, finished_at = durable.clock(), fence = gen_random_uuid(),
    unreported = true
where key in (
    select key from durable.run
    where state = 'pending' and attempt = 0 and due <= durable.clock() and expires_at <= durable.clock()
    order by due limit %(limit)s for update skip locked)
returning id

-- name: unclaimed
-- Messages that nobody claimed within their check time: perhaps lost, perhaps just far back in a queue.
select id, queue, priority, published_at, checks, durable.clock() as now
from durable.run
where state = 'pending' and published_at is not null and due <= durable.clock()
order by due limit %(limit)s

-- name: claims_of_queue
-- Evidence on one queue and priority: the latest publish time among runs that were claimed a while ago. Of those
-- that are over it looks at the newest 5,000 of all queues: an hour of a busy system would take seconds, and a
-- queue too rare to be among them is judged by what the broker says.
select max(published_at) as published_at from (
    (select published_at from durable.run
     where state in ('running', 'cancelling') and queue = %(queue)s and priority is not distinct from %(priority)s
       and claimed_at < durable.clock() - %(grace)s::interval
     order by worker limit 1000)
    union all
    (select published_at from (
        select published_at, queue, priority, claimed_at from durable.run
        where state in ('succeeded', 'failed', 'cancelled')
          and finished_at between durable.clock() - interval '1 hour' and durable.clock() - %(grace)s::interval
        order by finished_at desc limit 5000) as recent
     where queue = %(queue)s and priority is not distinct from %(priority)s
       and claimed_at < durable.clock() - %(grace)s::interval)
) as claims

-- name: reservations
-- Messages that live workers hold and have not started; and when the oldest report of it was made.
select coalesce(sum(reserved), 0)::bigint as reserved, min(beat_at) as oldest from durable.worker

-- name: recheck
-- Judged lost: publish again. Judged waiting: look again later. Either way the next check is twice as far.
with judged as (
    select r.key, j.lost from durable.run r
    join unnest(%(ids)s::text[], %(lost)s::boolean[]) as j (id, lost) on j.id = r.id
    where r.state = 'pending' and r.published_at is not null and r.due <= durable.clock()
    order by r.key for update of r skip locked
)
update durable.run r
set checks = r.checks + 1,
    due = durable.clock() + %(check)s::interval * power(2, least(r.checks + 1, 8)),
    published_at = case when judged.lost then durable.clock() else r.published_at end
from judged where r.key = judged.key
returning r.id, judged.lost, case when judged.lost then r.message end as message,
          case when judged.lost then r.body end as body

-- name: unreported
-- Failed and cancelled runs whose error callbacks, chain and chord nobody has told: the worker died before it could,
-- or there was none.
select id, state, reason, recoveries, result, result_type, message, body from durable.run
where unreported and finished_at < durable.clock() - interval '10 s'
order by finished_at limit %(limit)s

-- name: outbox_take
-- Messages to plain tasks whose sender died before it could publish them.
select key, id, message, body from durable.outbox
where created_at < durable.clock() - %(age)s::interval
order by key limit %(limit)s

-- name: outbox_done
delete from durable.outbox where key = any(%(keys)s)

-- name: prune
-- Whole final trees only, with everything that belongs to them, in one transaction. Every run of a tree is judged
-- again under its lock: where one was resumed meanwhile, or is locked by who resumes it, the tree stays. Failed runs
-- may have an age of their own.
with old as materialized (
    select distinct coalesce(picked.root, picked.id) as tree
    from (
        select r.id, r.root from durable.run r
        where r.state in ('succeeded', 'failed', 'cancelled')
          and r.finished_at < durable.clock() - least(%(age)s::interval, %(failed_age)s::interval)
          and r.finished_at < durable.clock() - durable.kept_for(r.state, %(age)s, %(failed_age)s)
          and not exists (
              select from durable.run t
              where t.root = coalesce(r.root, r.id) and t.root <> t.id
                and (t.finished_at is null or t.finished_at >= durable.clock() - durable.kept_for(t.state, %(age)s, %(failed_age)s)))
          and not exists (
              select from durable.run t
              where t.id = r.root
                and (t.finished_at is null or t.finished_at >= durable.clock() - durable.kept_for(t.state, %(age)s, %(failed_age)s)))
        order by r.finished_at limit %(limit)s) as picked
), member as materialized (
    select r.root as tree, r.key from durable.run r where r.root = any(array(select tree from old)) and r.root <> r.id
    union
    select r.id, r.key from durable.run r where r.id = any(array(select tree from old))
), locked as (
    select r.key from durable.run r
    where r.key = any(array(select key from member))
      and r.state in ('succeeded', 'failed', 'cancelled') and r.finished_at < durable.clock() - durable.kept_for(r.state, %(age)s, %(failed_age)s)
    order by r.key for update of r skip locked
), whole as (
    select member.tree from member left join locked on locked.key = member.key
    group by member.tree having count(*) = count(locked.key)
), gone as (
    delete from durable.run r
    where r.key = any(array(select member.key from member join whole on whole.tree = member.tree))
    returning r.key, r.id
), checkpoints as (
    delete from durable.checkpoint c using gone where c.run_key = gone.key
), attempts as (
    delete from durable.attempt a using gone where a.run_key = gone.key
), events as (
    delete from durable.event e using gone where e.run_key = gone.key
), signals as (
    delete from durable.signal s using gone where s.run_key = gone.key
), chains as (
    delete from durable.chain c where c.root = any(array(select tree from whole)) returning c.id
), links as (
    delete from durable.chain_link l using chains where l.chain = chains.id
), keys as (
    delete from durable.once o using gone where o.run = gone.id
)
select count(*) as runs from gone

-- name: prunable
-- How many runs a prune would delete: each run of a tree that is old as a whole.
select count(*) as runs from durable.run r
where r.state in ('succeeded', 'failed', 'cancelled')
  and r.finished_at < durable.clock() - durable.kept_for(r.state, %(age)s, %(failed_age)s)
  and not exists (
      select from durable.run t
      where t.root = coalesce(r.root, r.id) and t.root <> t.id
        and (t.finished_at is null or t.finished_at >= durable.clock() - durable.kept_for(t.state, %(age)s, %(failed_age)s)))
  and not exists (
      select from durable.run t
      where t.id = r.root
        and (t.finished_at is null or t.finished_at >= durable.clock() - durable.kept_for(t.state, %(age)s, %(failed_age)s)))
