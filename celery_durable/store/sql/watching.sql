-- What pages and metrics look at again and again. Everything here reads, and reads a bounded number of rows.

-- name: tally
-- How many runs are in each state, for each reason; of one state at most `most` are counted, the newest. Those that
-- roll back are not what their rows say.
select state, reason, sum(runs)::bigint as runs from (
    select wanted.state, counted.reason, count(*) as runs
    from unnest(%(states)s::text[]) as wanted (state)
    cross join lateral (select r.reason from durable.run r where r.state = wanted.state
                        order by r.key desc limit %(most)s) as counted
    group by wanted.state, counted.reason
    union all
    select moved.state, case when moved.sign < 0 then r.reason end, sum(moved.sign)
    from (select state::text, reason from durable.run
          where ending is not null and finished_at is null and state in ('pending', 'waiting')
          order by key desc limit %(most)s) as r
    cross join lateral (values (r.state, -1), ('cancelling', 1)) as moved (state, sign)
    where moved.state = any(%(states)s)
    group by 1, 2) as counted
group by state, reason having sum(runs) > 0

-- name: stuck
-- Runs that something should have moved on: their worker is gone or silent for a lease, they are overdue, or no live
-- worker has the version that they may be executed by.
select key from (
    (select r.key from durable.run r
     where r.state in ('running', 'cancelling') and r.worker is not null
       and not exists (select from durable.worker w
                       where w.id = r.worker and w.beat_at > durable.clock() - %(lease)s::interval)
     limit %(most)s)
    union all
    (select r.key from durable.run r where r.state = 'cancelling' and r.worker is null and r.due is null
     limit %(most)s)
    union all
    (select r.key from durable.run r
     where r.state = 'waiting' and r.due < durable.clock() - %(grace)s::interval order by r.due limit %(most)s)
    union all
    (select r.key from durable.run r
     where r.state = 'pending' and r.published_at is null and r.due < durable.clock() - %(grace)s::interval
     order by r.due limit %(most)s)
    union all
    (select r.key from durable.run r
     where r.state = 'pending' and r.published_at is not null and r.due < durable.clock() - %(grace)s::interval
     order by r.due limit %(most)s)
    union
    (select r.key from durable.run r
     where r.state = 'waiting' and r.reason = 'version'
       and not exists (select from durable.worker w
                       where w.code = r.version and w.beat_at > durable.clock() - %(lease)s::interval)
     limit %(most)s)) as found
order by key desc

-- name: tasks
-- The names of all tasks that have runs, by skipping from one to the next in an index.
with recursive known as (
    (select task from durable.run order by task limit 1)
    union all
    select (select r.task from durable.run r where r.task > k.task order by r.task limit 1)
    from known k where k.task is not null
)
select task from known where task is not null limit %(most)s

-- name: pulse
-- Whether anything a list shows has changed: a new run, an end, a claim or a release.
select (select max(key) from durable.run) as newest,
       (select max(finished_at) from durable.run where state in ('succeeded', 'failed', 'cancelled')) as ended,
       (select sum(hashtextextended(concat_ws(' ', key, attempt, cancel_requested, xmin), 0))
        from (select key, attempt, cancel_requested, xmin::text from durable.run
              where state in ('running', 'cancelling') and worker is not null order by worker limit 1000) as executing) as executing,
       (select count(*) from (select from durable.run where state = 'waiting' order by key desc limit 1000) as few) as waiting,
       (select sum(hashtextextended(concat_ws(' ', id, beat_at > durable.clock() - %(lease)s::interval), 0))
        from durable.worker) as workers

-- name: pulses
-- The same of single runs: their row, checkpoints, events and children.
select r.id, r.xmin::text as version,
       (select concat_ws(' ', count(*), max(c.stored_at)) from durable.checkpoint c where c.run_key = r.key) as steps,
       (select max(e.key) from durable.event e where e.run_key = r.key) as events,
       (select sum(hashtextextended(child.version, 0))
        from (select c.xmin::text as version from durable.run c
              where c.root = coalesce(r.root, r.id) and c.root <> c.id and c.parent = r.id limit 200) as child) as children,
       (select w.beat_at > durable.clock() - %(lease)s::interval from durable.worker w where w.id = r.worker) as alive
from durable.run r where r.id = any(%(ids)s)

-- name: surroundings
-- What decides whether a run can move: its worker's heart, who could take it, who leads, what is in front of it.
select (select extract(epoch from durable.clock() - w.beat_at)::float8
        from durable.worker w where w.id = r.worker) as silent,
       (select count(*) from durable.worker w
        where w.beat_at > durable.clock() - %(lease)s::interval and w.hostname not like 'keeper@%%') as workers,
       (select extract(epoch from l.expires_at - durable.clock())::float8 from durable.leader l) as led_for,
       (select count(*) from durable.worker w
        where w.beat_at > durable.clock() - %(lease)s::interval and w.code = r.version) as of_its_version,
       (select count(*) from durable.run s
        where s.slot = r.slot and s.state in ('running', 'cancelling')) as slot_taken,
       (select count(*) from (select from durable.run p
                              where p.state = 'pending' and p.queue = r.queue and p.key < r.key
                              order by p.key desc limit 1000) as ahead) as ahead
from durable.run r where r.id = %(id)s

-- name: children
-- The runs that a run has started, oldest first.
select c.id, c.task, durable.shown_state(c.state, c.ending, c.finished_at) as state, c.reason, c.created_at,
       c.started_at, c.finished_at
from durable.run r
join durable.run c on c.root = coalesce(r.root, r.id) and c.root <> c.id and c.parent = r.id
where r.id = %(id)s
order by c.key limit %(most)s

-- name: relatives
-- Runs named by their ids: a run's parent and root.
select id, task, durable.shown_state(state, ending, finished_at) as state from durable.run where id = any(%(ids)s)

-- name: payload_of_step
-- What a step returned or was given, or a part of it.
select c.arguments, c.codec, c.error, c.seq, octet_length(c.output) as bytes,
       substring(c.output from %(start)s for %(size)s) as data
from durable.checkpoint c
where c.run_key = (select key from durable.run where id = %(id)s) and c.key = %(key)s

-- name: payload_of_body
-- What a run was called with, or a part of it.
select r.message, octet_length(r.body) as bytes, substring(r.body from %(start)s for %(size)s) as data
from durable.run r where r.id = %(id)s

-- name: payload_of_result
-- What a run returned or failed with, or a part of it.
select r.result_type, r.state, octet_length(r.result) as bytes,
       substring(r.result from %(start)s for %(size)s) as data
from durable.run r where r.id = %(id)s

-- name: payload_of_signal
-- What one of the signals to a run carried, or a part of it; they are numbered in the order they are shown in.
select s.codec, octet_length(s.payload) as bytes, substring(s.payload from %(start)s for %(size)s) as data
from durable.signal s
where s.run_key = (select key from durable.run where id = %(id)s)
order by s.key offset %(number)s limit 1

-- name: state_at
-- What was known when a step was called: the outcomes of those before it, cut to a size that a page can show.
select c.key, c.seq, c.outcome, c.arguments, c.codec, c.error, octet_length(c.output) as bytes,
       substring(c.output from 1 for %(size)s) as data
from durable.checkpoint c
where c.run_key = (select key from durable.run where id = %(id)s) and c.seq <= %(seq)s and c.outcome <> 'discarded'
order by c.seq desc limit %(most)s

-- name: trend
-- Runs that ended, by time and state: how many, how long they took and waited, how many had lost a worker.
select date_bin(%(bucket)s::interval, finished_at, 'epoch') as at, state, count(*) as runs,
       sum(attempt - 1) as more_attempts, count(*) filter (where recoveries > 0) as recovered,
       percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from finished_at - started_at)) as took,
       percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from started_at - created_at)) as queued
from (select r.finished_at, r.state, r.attempt, r.recoveries, r.started_at, r.created_at
      from durable.run r
      where r.state in ('succeeded', 'failed', 'cancelled') and r.finished_at >= durable.clock() - %(age)s::interval
      order by r.finished_at desc limit %(most)s) as ended
group by 1, 2 order by 1, 2

-- name: hot_steps
-- Steps of the newest runs, by what they cost: time, tries, errors. Those that took most, and those tried again most.
with spent as (
    select recent.task, regexp_replace(c.key, '#[0-9]+$', '') as step, count(*) as calls,
           percentile_cont(array[0.5, 0.95]) within group (order by c.seconds) as took, max(c.seconds) as longest,
           sum(c.tries - 1) as more_tries, count(*) filter (where c.outcome = 'error') as errors,
           row_number() over (order by sum(c.seconds * c.tries) desc) as by_time,
           row_number() over (order by sum(c.tries - 1) desc) as by_tries
    from (select key, task from durable.run order by key desc limit %(most)s) as recent
    cross join lateral (select one.key, one.seconds, one.tries, one.outcome from durable.checkpoint one
                        where one.run_key = recent.key and one.kind is null limit 1000) as c
    group by 1, 2
)
select task, step, calls, took, longest, more_tries, errors from spent
where by_time <= 100 or (by_tries <= 20 and more_tries > 0) order by by_time

-- name: workers
-- Worker processes, how long ago each one's heart last beat, what each executes, and who leads.
select w.id, w.hostname, w.pid, w.version, w.started_at, w.reserved,
       extract(epoch from durable.clock() - w.beat_at)::float8 as silent,
       (select count(*) from durable.run r
        where r.worker = w.id and r.state in ('running', 'cancelling')) as runs,
       exists (select from durable.leader l where l.holder = w.id and l.expires_at > durable.clock()) as leads
from durable.worker w order by w.hostname, w.id limit %(most)s

-- name: storage
-- Size and about how many rows each table has.
select c.relname::text as name, pg_total_relation_size(c.oid) as bytes, greatest(c.reltuples, s.n_live_tup, 0)::bigint as rows
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_all_tables s on s.relid = c.oid
where n.nspname = %(schema)s and c.relkind = 'r' order by 2 desc

-- name: newest
-- The newest key, and what time it is.
select (select max(key) from durable.run) as newest, durable.clock() as now
