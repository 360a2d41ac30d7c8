-- Runs executed without a worker, in a database that serves a test and nobody else.

-- name: next_pending
-- The oldest run that could be claimed. Before its first claim it is given a seed that its id decides, so that
-- a repetition under the same id draws the same numbers.
update durable.run set seed = case when attempt = 0 then md5(id)::uuid else seed end
where key = (select key from durable.run where state = 'pending' order by due limit 1)
returning id, message, body

-- name: next_timer
-- Seconds until time alone makes something happen: a run is due or past its deadline, or an ending is told that no
-- worker was there to tell.
select extract(epoch from least(
    (select min(due) from durable.run where state = 'waiting' and due is not null),
    (select min(deadline) from durable.run where finished_at is null and not cancel_requested and ending is null),
    (select min(finished_at) + interval '10 s' from durable.run where unreported)) - durable.clock())::float8 as seconds

-- name: unfinished
-- What is left when nothing can go on by itself.
select id, task, state, reason from durable.run
where state in ('pending', 'running', 'waiting', 'cancelling') order by state, key

-- name: untold
-- What a worker that died may have left to the keeper.
select exists (select from durable.run where unreported) or exists (select from durable.outbox)
       or exists (select from durable.chord where done_at is null) as untold

-- name: ahead
-- By how much the clock will be ahead when it is moved forward.
select (coalesce(nullif(current_setting('durable.clock_offset', true), ''), '0')::interval
        + make_interval(secs => %(seconds)s))::text as ahead
