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
         seconds)
    select mine.key, %(key)s, %(seq)s, 'waiting', %(kind)s,
           coalesce(%(until)s::timestamptz, durable.clock() + %(delay)s::interval), %(output)s, %(kind)s,
           %(digest)s, %(arguments)s, %(fence)s, mine.attempt, 1, %(clock)s, 0
    from mine where mine.fence = %(fence)s and mine.state = 'running' and not mine.cancel_requested
    on conflict (run_key, key) do update
    set outcome = 'waiting', kind = excluded.kind, output = excluded.output, codec = excluded.codec,
        digest = excluded.digest, arguments = excluded.arguments, error = null,
        due = case when c.outcome = 'discarded' then excluded.due else c.due end,
        clock = case when c.fence = excluded.fence then c.clock else c.clock || excluded.clock end,
        fence = excluded.fence, attempt = excluded.attempt
    where c.outcome in ('waiting', 'discarded')
    returning due
)
select mine.fence = %(fence)s and mine.state = 'running' as held, mine.cancel_requested,
       extract(epoch from stored.due - durable.clock())::float8 as remaining
from mine left join stored on true

-- name: receive
-- Take the oldest signal of this name, or note that the time for it is over.
with mine as (
    select r.key, r.attempt, c.due
    from durable.run r join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s
    where r.key = %(run)s and r.fence = %(fence)s and r.state = 'running' and not r.cancel_requested
      and c.outcome = 'waiting'
), arrived as (
    select s.key, s.payload, s.codec from mine join durable.signal s on s.run_key = mine.key
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
where c.run_key = mine.key and c.key = %(key)s and (arrived.key is not null or mine.due <= durable.clock())

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
        worker = null, pid = null, custom_state = null
    from mine
    where r.key = mine.key and mine.fence = %(fence)s and mine.state = 'running' and not mine.cancel_requested
      and mine.outcome = 'waiting' and (mine.due is null or mine.due > durable.clock())
    returning r.key, r.attempt
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'suspended'
    from gone where a.run_key = gone.key and a.number = gone.attempt
)
select mine.fence = %(fence)s and mine.state = 'running' as held, mine.cancel_requested,
       mine.outcome, mine.output, mine.codec,
       mine.fence = %(closed)s or exists (select from gone) as "left"
from mine
