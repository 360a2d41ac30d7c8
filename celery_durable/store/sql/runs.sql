-- One run, from its first row to its last write. Everything here touches the rows of one run only.
-- A holder's write names the run's key and its fence: no row back means that the lease is lost.

-- name: enqueue
-- Store one run before its message is published; a second one with the same id changes nothing, unless the
-- first was replaced (Task.replace) by a chord or group whose body comes back under its id. A run that another
-- one starts (a child, a link) names its holder and fence, so that a superseded attempt starts none.
insert into durable.run
    (id, task, queue, priority, state, reason, due, published_at,
     message, body, parent, root, "group", version, expires_at, deadline)
select %(id)s, %(task)s, %(queue)s, %(priority)s::smallint,
       case when due.at > durable.clock() then 'waiting' else 'pending' end,
       case when due.at > durable.clock() then 'timer' end,
       case when due.at > durable.clock() then due.at
            when %(publish)s then durable.clock() + %(check)s::interval
            else durable.clock() end,
       case when %(publish)s and not due.at > durable.clock() then durable.clock() end,
       %(message)s, %(body)s, %(parent)s, %(root)s, %(group)s, %(version)s,
       coalesce(%(expires_at)s::timestamptz, durable.clock() + %(expires)s::interval),
       coalesce(%(deadline_at)s::timestamptz, durable.clock() + %(deadline)s::interval)
from (select coalesce(%(eta)s::timestamptz, durable.clock() + %(countdown)s::interval, durable.clock())) as due (at)
where %(holder)s::bigint is null or exists (select from durable.run where key = %(holder)s and fence = %(fence)s)
on conflict (id) do update
set task = excluded.task, queue = excluded.queue, priority = excluded.priority,
    state = excluded.state, reason = excluded.reason, due = excluded.due,
    published_at = excluded.published_at, message = excluded.message, body = excluded.body
where run.state = 'waiting' and run.reason = 'replaced'
returning id, state

-- name: enqueue_bulk
-- Many runs with distinct ids, each stored as `enqueue` stores one; no row back for those that were there already.
insert into durable.run
    (id, task, queue, priority, state, reason, due, published_at,
     message, body, parent, root, "group", version, expires_at, deadline)
select new.id, new.task, new.queue, new.priority,
       case when due.at > durable.clock() then 'waiting' else 'pending' end,
       case when due.at > durable.clock() then 'timer' end,
       case when due.at > durable.clock() then due.at
            when new.publish then durable.clock() + %(check)s::interval
            else durable.clock() end,
       case when new.publish and not due.at > durable.clock() then durable.clock() end,
       new.message, new.body, new.parent, new.root, new."group", new.version,
       coalesce(new.expires_at, durable.clock() + new.expires),
       coalesce(new.deadline_at, durable.clock() + new.deadline)
from unnest(%(id)s::text[], %(task)s::text[], %(queue)s::text[], %(priority)s::smallint[], %(publish)s::boolean[],
            %(message)s::bytea[], %(body)s::bytea[], %(parent)s::text[], %(root)s::text[], %(group)s::text[],
            %(version)s::text[], %(eta)s::timestamptz[], %(countdown)s::interval[],
            %(expires_at)s::timestamptz[], %(expires)s::interval[], %(deadline_at)s::timestamptz[],
            %(deadline)s::interval[])
     as new (id, task, queue, priority, publish, message, body, parent, root, "group", version, eta, countdown,
             expires_at, expires, deadline_at, deadline)
cross join lateral (select coalesce(new.eta, durable.clock() + new.countdown, durable.clock())) as due (at)
where %(holder)s::bigint is null or exists (select from durable.run where key = %(holder)s and fence = %(fence)s)
on conflict (id) do update
set task = excluded.task, queue = excluded.queue, priority = excluded.priority,
    state = excluded.state, reason = excluded.reason, due = excluded.due,
    published_at = excluded.published_at, message = excluded.message, body = excluded.body
where run.state = 'waiting' and run.reason = 'replaced'
returning id, state

-- name: unclaimed
-- Runs that were there already and that nobody has claimed: perhaps this very enqueue's, whose answer was lost.
select id, state from durable.run where id = any(%(ids)s) and state = 'pending' and attempt = 0

-- name: enqueue_outbox
-- Keep messages to tasks without a run until they are published: links of a finished run. Their ids are distinct.
insert into durable.outbox (id, message, body)
select new.id, new.message, new.body
from unnest(%(id)s::text[], %(message)s::bytea[], %(body)s::bytea[]) as new (id, message, body)
where %(holder)s::bigint is null or exists (select from durable.run where key = %(holder)s and fence = %(fence)s)
on conflict (id) do update set message = excluded.message
returning id, key

-- name: assign_slot
-- What a run just stored shares with others of its key; in the transaction that stores it.
update durable.run
set slot = %(key)s, slot_limit = %(limit)s, slot_rate = %(rate)s, slot_period = %(period)s, slot_rank = %(rank)s
where id = %(id)s and attempt = 0
returning id

-- name: unpublish
-- The broker did not take these messages: hand them to the keeper.
update durable.run set published_at = null, due = durable.clock() + %(delay)s::interval
where key in (select key from durable.run where id = any(%(ids)s) and state = 'pending' order by key for update)

-- name: claim
-- Lease, fence and a row of history in one statement; repeated after a lost answer it recognises itself.
-- The worker row is looked up by token, so that an attempt never claims for a worker that was declared dead;
-- an old message of a task that was replaced claims nothing for it.
with claimed as (
    update durable.run r
    set state = case when r.ending is null then 'running' else 'cancelling' end, reason = null, due = null,
        fence = %(fence)s, compensates = nullif(r.compensates, false),  -- once true, it is true until it begins anew
        attempt = r.attempt + case when r.fence = %(fence)s then 0 else 1 end,
        worker = w.id, pid = %(pid)s, custom_state = null, checks = 0,
        claimed_at = durable.clock(), started_at = coalesce(r.started_at, durable.clock())
    from durable.worker w
    where r.id = %(id)s and w.token = %(token)s and (%(task)s::text is null or r.task = %(task)s)
      and (r.state = 'pending' or (r.state in ('running', 'cancelling') and r.fence = %(fence)s))
      and (r.attempt > 0 or r.expires_at is null or r.expires_at > durable.clock())
      and r.slot is null
    returning r.*, w.hostname
), history as (
    insert into durable.attempt (run_key, number, fence, worker, hostname, pid)
    select key, attempt, fence, worker, hostname, pid from claimed
    on conflict (run_key, number) do nothing
)
select key, id, task, fence, attempt, generation, retries, recoveries, seed, cancel_requested, claimed_at,
       revision, replacements, parent, wait, abreast, deadline, slot, ending, ending_reason, rollbacks,
       case when ending is not null then result end as result, result_type,
       case when revision <> %(revision)s then body end as body,
       case when revision <> %(revision)s then message end as message
from claimed

-- name: history
-- The finished steps of a run just claimed. A statement of its own: its snapshot must be younger than the
-- claim's lock, or the last checkpoint of the attempt it replaced would be missed.
select c.key, c.seq, c.outcome, c.output, c.codec, c.digest, c.arguments, c.tries, c.spent, c.clock,
       c.kind, c.due, c.too_late
from durable.checkpoint c
where c.run_key = (
    select key from durable.run where id = %(id)s and fence = %(fence)s and state in ('running', 'cancelling'))
order by c.seq

-- name: standing
-- Why a claim was refused.
select r.state, r.expires_at <= durable.clock() and r.attempt = 0 as expired,
       exists (select from durable.worker where token = %(token)s) as worker_alive, r.slot is not null as slotted,
       r.version
from (select) as one left join durable.run r on r.id = %(id)s

-- name: wait_for_version
-- A run that may not be executed here comes back: soon if a worker of its version is alive, else once a minute.
update durable.run r
set state = 'waiting', reason = 'version', published_at = null,
    due = durable.clock() + case when exists (select from durable.worker w where w.code = r.version)
                                 then interval '1 second' else interval '1 minute' end
where r.id = %(id)s and r.state = 'pending' and r.version <> %(version)s
returning r.key

-- name: expire
-- A run that nobody claimed in time is over.
update durable.run
set state = 'cancelled', reason = 'expired', due = null, finished_at = durable.clock(), fence = gen_random_uuid(),
    unreported = true
where id = %(id)s and state = 'pending' and attempt = 0 and expires_at <= durable.clock()
returning id

-- name: checkpoint
-- Store one step's outcome, fenced by the lock on the run row. This is the short form for the case that nothing
-- is unusual: no row stored means that the long form has to say why. A finished checkpoint is never replaced:
-- the only write that meets one is this very write, repeated after its answer was lost.
insert into durable.checkpoint as c
    (run_key, key, seq, outcome, output, codec, digest, arguments, fence, attempt,
     tries, spent, error, clock, seconds, behind)
select r.key, %(key)s, %(seq)s, %(outcome)s, %(output)s, %(codec)s, %(digest)s, %(arguments)s,
       %(fence)s, r.attempt, %(tries)s, %(spent)s, %(error)s, %(clock)s, %(seconds)s, %(behind)s
from durable.run r
where r.key = %(run)s and r.fence = %(fence)s and r.state = 'running' and not r.cancel_requested
for no key update
on conflict (run_key, key) do update
set seq = excluded.seq, outcome = excluded.outcome, output = excluded.output, codec = excluded.codec,
    digest = excluded.digest, arguments = excluded.arguments, fence = excluded.fence,
    attempt = excluded.attempt, tries = excluded.tries, spent = excluded.spent, error = excluded.error,
    clock = case when c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome
                 then c.clock else c.clock || excluded.clock end,
    earlier = case when c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome
                   then c.earlier else durable.with_try(c) end,
    seconds = excluded.seconds, behind = excluded.behind,
    stored_at = case when c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome
                     then c.stored_at else excluded.stored_at end
where c.outcome in ('trying', 'started', 'discarded')
   or (c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome)

-- name: checkpoint_told
-- The same in a long form, which tells a lost lease (no row) from a run that is asked to stop and from a
-- checkpoint that has another outcome already. Twice the server's time of the short one.
with fence as (
    select key, attempt, cancel_requested from durable.run
    where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling')
    for no key update
), stored as (
    insert into durable.checkpoint as c
        (run_key, key, seq, outcome, output, codec, digest, arguments, fence, attempt,
         tries, spent, error, clock, seconds, behind)
    select fence.key, %(key)s, %(seq)s, %(outcome)s, %(output)s, %(codec)s, %(digest)s, %(arguments)s,
           %(fence)s, fence.attempt, %(tries)s, %(spent)s, %(error)s, %(clock)s, %(seconds)s, %(behind)s
    from fence
    on conflict (run_key, key) do update
    set seq = excluded.seq, outcome = excluded.outcome, output = excluded.output, codec = excluded.codec,
        digest = excluded.digest, arguments = excluded.arguments, fence = excluded.fence,
        attempt = excluded.attempt, tries = excluded.tries, spent = excluded.spent, error = excluded.error,
        clock = case when c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome
                     then c.clock else c.clock || excluded.clock end,
        earlier = case when c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome
                       then c.earlier else durable.with_try(c) end,
        seconds = excluded.seconds, behind = excluded.behind,
        stored_at = case when c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome
                         then c.stored_at else excluded.stored_at end
    where c.outcome in ('trying', 'started', 'discarded')
       or (c.fence = excluded.fence and c.tries = excluded.tries and c.outcome = excluded.outcome)
    returning key
)
select fence.cancel_requested, exists (select from stored) as stored from fence

-- name: asked_to_stop
-- Whether somebody asked a run to stop, for one that has not written for a while. No row: the lease is lost.
select cancel_requested from durable.run
where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling')

-- name: note_compensates
-- A body registers compensations in front of its first step: who ends the run during that step has to know.
update durable.run set compensates = true
where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling')
returning cancel_requested

-- name: note_too_late
-- The body has cancelled a step whose outcome was being stored: it goes on with that, and its tasks with the cancel.
update durable.checkpoint c set too_late = true
from durable.run r
where r.key = %(run)s and r.fence = %(fence)s and r.state in ('running', 'cancelling')
  and c.run_key = r.key and c.key = %(key)s
returning r.cancel_requested

-- name: note_calls
-- Evidence of calls that a step's body made, stored with the step; known by the call's id if it is stored again.
insert into durable.event (run_key, kind, detail)
select r.key, 'call', made.detail
from durable.run r, unnest(%(calls)s::text[]::jsonb[]) with ordinality as made (detail, number)
where r.key = %(run)s and r.fence = %(fence)s
  and not exists (select from durable.event known
                  where known.run_key = r.key and known.detail ->> 'call' = made.detail ->> 'call')
order by made.number

-- name: relax
-- In front of a checkpoint that is cheap to repeat: this one commit does not wait for the disk.
select set_config('synchronous_commit', 'off', true) as synchronous_commit

-- name: finish
-- The run's one outcome, its result and the end of its attempt. The fence stays, so that a repeated finish
-- finds its own row and writes the same again. A body that raised Ignore keeps the state it has set itself. One that
-- has cleaned up is as good as one that was taken back: it cannot be resumed.
with finished as (
    update durable.run
    set state = %(state)s, due = null, worker = null, pid = null, compensates = false,
        reason = case when %(reason)s::text = 'cancelled' then durable.cause_of(key) else %(reason)s end,
        ending = case when %(cleaned)s then %(state)s::durable.run_state else ending end,
        rollbacks = case when %(cleaned)s then '{}' else rollbacks end,
        custom_state = case when %(reason)s::text = 'ignored' then custom_state end,
        unreported = %(unreported)s,
        result = case when %(reason)s::text = 'ignored' and custom_state is not null then result else %(result)s end,
        result_type = coalesce(%(result_type)s, result_type), traceback = %(traceback)s, meta = %(meta)s,
        finished_at = coalesce(finished_at, durable.clock())
    where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling', %(state)s)
    returning key, attempt
), ended as (
    update durable.attempt a
    set ended_at = durable.clock(), outcome = %(state)s, error = %(error)s, traceback = %(traceback)s
    from finished f where a.run_key = %(run)s and a.run_key = f.key and a.number = f.attempt
)
select key from finished

-- name: roll_back
-- A run that ends badly and has compensations: how it ends is stored, then it takes them back. Repeated, or by an
-- attempt that found them at its replay, it changes nothing but the list of them.
with begun as (
    update durable.run
    set state = 'cancelling', recoveries = case when ending is null then 0 else recoveries end,
        recoveries_before = case when ending is null then recoveries else recoveries_before end,
        result = case when ending is null then %(result)s else result end,
        result_type = case when ending is null then %(result_type)s else result_type end,
        traceback = case when ending is null then %(traceback)s else traceback end,
        meta = case when ending is null then %(meta)s else meta end,
        ending_reason = case when ending is not null then ending_reason
                             when %(reason)s::text = 'cancelled' then durable.cause_of(key) else %(reason)s end,
        ending = coalesce(ending, %(state)s), rollbacks = %(rollbacks)s, compensates = true
    where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling')
    returning key, attempt
), told as (  -- what went wrong is the end of this attempt, however its compensations go
    update durable.attempt a set error = %(error)s, traceback = %(traceback)s
    from begun b where a.run_key = b.key and a.number = b.attempt and %(error)s::text is not null
)
select key from begun

-- name: rolled_back
-- The end of a run that has taken back what it could. A compensation that fails for good keeps the rest for a
-- resume; a run that turns out to have none ends as if it had never been asked; one whose clean-up has failed ends as
-- failed with that.
with finished as (
    update durable.run
    set state = case when coalesce(%(problem)s::text, %(failed)s) is null then coalesce(ending, state)
                     else 'failed' end,
        reason = case when ending is null then reason
                      when %(problem)s::text is null and %(failed)s::text is not null then null
                      when %(problem)s::text is null then ending_reason else 'rollback' end,
        result = case when ending = 'cancelled' then %(result)s else result end,
        result_type = case when ending = 'cancelled' then %(result_type)s else result_type end,
        ending = case when %(undone)s or %(problem)s::text is not null then ending end,
        rollbacks = case when %(problem)s::text is null then coalesce(rollbacks, '{}') else rollbacks end,
        recoveries = recoveries + coalesce(recoveries_before, 0), recoveries_before = null,
        compensates = false, due = null, worker = null, pid = null, custom_state = null,
        unreported = %(unreported)s, finished_at = coalesce(finished_at, durable.clock())
    where key = %(run)s and fence = %(fence)s and state in ('cancelling', 'failed', 'cancelled')
    returning key, attempt, state, reason
), ended as (
    update durable.attempt a
    set ended_at = durable.clock(), outcome = f.state, error = coalesce(%(problem)s, %(failed)s, a.error)
    from finished f where a.run_key = %(run)s and a.run_key = f.key and a.number = f.attempt
)
select state, reason from finished

-- name: release
-- Leave the worker: for a retry (with a due time), or to hand the run on (due now). Step errors that no successful
-- step or wait could know of (it came before them, or overlapped with them) are put aside when the run is tried again.
-- What another branch of the body has begun behind the very error that the run failed with does not keep that. The fence is closed with a value
-- that only this attempt can derive, so that the write, repeated, recognises itself; it is judged under the
-- lock, for the first one may still be committing. A run that is asked to stop ends here, unless it cleans up: then
-- it is on its way to its end as one that takes back is, and goes on with that.
with mine as (
    select key, fence, state, cancel_requested and ending is null and not %(cleans)s as stops from durable.run
    where key = %(run)s and fence in (%(fence)s, %(closed)s)
    for no key update
), released as (
    update durable.run r
    set state = case when mine.stops then 'cancelled'
                     when %(reason)s::text = 'replaced' or %(delay)s::interval > interval '0' then 'waiting'
                     else 'pending' end,
        reason = case when mine.stops then durable.cause_of(r.key)
                      when %(reason)s::text = 'replaced' or %(delay)s::interval > interval '0' then %(reason)s end,
        due = case when not mine.stops and %(reason)s::text is distinct from 'replaced'
                   then durable.clock()
                   + case when %(delay)s::interval > interval '0' then %(delay)s::interval
                          when %(publish)s then %(check)s::interval else interval '0' end end,
        published_at = case when %(publish)s and not %(delay)s::interval > interval '0' then durable.clock() end,
        finished_at = case when mine.stops then durable.clock() end,
        unreported = mine.stops, compensates = coalesce(%(compensates)s, r.compensates),
        (ending, ending_reason, recoveries, recoveries_before) = (
            select (case when first then 'cancelled' else r.ending end),
                   (case when first then durable.cause_of(r.key) else r.ending_reason end),
                   (case when first then 0 else r.recoveries end),
                   (case when first then r.recoveries else r.recoveries_before end)
            from (select %(cleans)s and r.ending is null) as now (first)),
        fence = %(closed)s, worker = null, pid = null, custom_state = null,
        retries = coalesce(%(retries)s, retries),
        result = coalesce(%(result)s, result), result_type = coalesce(%(result_type)s, result_type),
        traceback = coalesce(%(traceback)s, traceback),
        task = coalesce(%(task)s, task), queue = coalesce(%(queue)s, queue),
        priority = coalesce(%(priority)s::smallint, priority),
        revision = revision + case when %(body)s::bytea is null then 0 else 1 end,
        -- a task that takes this one's place begins anew: other children, other keys, another seed
        replacements = replacements + case when %(discard)s = 'all' then 1 else 0 end,
        seed = case when %(discard)s = 'all' then gen_random_uuid() else seed end,
        body = coalesce(%(body)s, body), message = coalesce(%(message)s, message),
        -- it shares what another task says; the same one goes on with what its caller has said
        (slot, slot_limit, slot_rate, slot_period, slot_rank) = (
            select (case when other then nullif(%(slot_key)s::text, '') else r.slot end),
                   (case when other then %(slot_limit)s::integer else r.slot_limit end),
                   (case when other then %(slot_rate)s::integer else r.slot_rate end),
                   (case when other then %(slot_period)s::interval else r.slot_period end),
                   (case when other then %(slot_rank)s::smallint else r.slot_rank end)
            from (select %(discard)s = 'all' and coalesce(%(task)s::text <> r.task, false)) as now (other))
    from mine where r.key = mine.key and mine.fence = %(fence)s and mine.state in ('running', 'cancelling')
    returning r.key, r.attempt, r.state
), ended as (
    update durable.attempt a
    set ended_at = durable.clock(), outcome = %(outcome)s, error = %(error)s, traceback = %(traceback)s
    from released r where a.run_key = %(run)s and a.run_key = r.key and a.number = r.attempt
), discarded as (
    update durable.checkpoint c set outcome = 'discarded', spent = c.tries
    from released r
    where %(discard)s = 'errors' and c.run_key = %(run)s and c.run_key = r.key and c.outcome = 'error'
      and c.seq > coalesce((select max(coalesce(ok.behind, ok.seq - 1)) from durable.checkpoint ok
                            where ok.run_key = r.key and ok.outcome in ('ok', 'waiting')
                              and (c.error is distinct from %(error)s::text
                                   or starts_with(c.key, durable.branch_of(ok.key)))), 0)
), forgotten as (
    delete from durable.checkpoint c using released r
    where %(discard)s = 'all' and c.run_key = %(run)s and c.run_key = r.key
), received as (  -- a week is for senders that send one again
    delete from durable.signal s using released r
    where %(discard)s = 'all' and s.run_key = %(run)s and s.run_key = r.key and s.taken_by is not null
      and s.sent_at < durable.clock() - interval '7 days'
)
select coalesce(released.state, mine.state) as state
from mine left join released on released.key = mine.key
where released.key is not null or mine.fence = %(closed)s

-- name: update_state
-- Task.update_state() from inside the run.
update durable.run set custom_state = %(state)s, result = %(result)s, result_type = %(result_type)s
where key = %(run)s and fence = %(fence)s and state = 'running'
returning key

-- name: recover_child
-- The pool child that executed this run is gone. Only the worker that owns the run may say so, and only of
-- the child recorded at the claim. A cancelled run that is taking back may lose no more workers than another one.
with lost as (
    select r.key from durable.run r join durable.worker w on w.id = r.worker
    where r.id = %(id)s and r.state in ('running', 'cancelling') and w.token = %(token)s
      and (r.pid = %(pid)s or %(pid)s::integer is null)
    for update of r
), recovered as (
    update durable.run r
    set state = case when cancel_requested and ending is null then 'cancelled'
                     when recoveries + 1 > %(max_recoveries)s then 'failed' else 'pending' end,
        reason = case when cancel_requested and ending is null then durable.cause_of(r.key)
                      when recoveries + 1 > %(max_recoveries)s then 'exhausted' end,
        due = case when not (cancel_requested and ending is null) and recoveries + 1 <= %(max_recoveries)s
                   then durable.clock() + %(check)s::interval end,
        published_at = durable.clock(),
        finished_at = case when (cancel_requested and ending is null) or recoveries + 1 > %(max_recoveries)s
                           then durable.clock() end,
        result = case when recoveries + 1 > %(max_recoveries)s then %(result)s else result end,
        result_type = case when recoveries + 1 > %(max_recoveries)s then %(result_type)s else result_type end,
        unreported = (cancel_requested and ending is null) or recoveries + 1 > %(max_recoveries)s,
        recoveries = recoveries + 1, fence = gen_random_uuid(), worker = null, pid = null, custom_state = null
    from lost where r.key = lost.key
    returning r.*
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'lost', error = %(error)s
    from recovered r where a.run_key = r.key and a.number = r.attempt
), noted as (
    insert into durable.event (run_key, kind, detail)
    select key, 'recovered', jsonb_build_object('attempt', attempt, 'error', %(error)s::text, 'state', state)
    from recovered
)
select id, state, recoveries, message, body from recovered

-- name: release_strays
-- Runs this worker owns and does not execute: their release never reached the database. Not a crash. Named with
-- the fences they were seen with, for this worker may have claimed one again meanwhile.
with stray as (
    select r.key from durable.run r join durable.worker w on w.id = r.worker
    join unnest(%(ids)s::text[], %(fences)s::uuid[]) as s (id, fence) on s.id = r.id and s.fence = r.fence
    where w.token = %(token)s and r.state in ('running', 'cancelling')
    order by r.key for update of r
), released as (
    update durable.run r
    set state = case when cancel_requested then 'cancelled' else 'pending' end,
        reason = case when cancel_requested then durable.cause_of(r.key) end,
        due = case when not cancel_requested then durable.clock() end,
        finished_at = case when cancel_requested then durable.clock() end, unreported = cancel_requested,
        published_at = null, fence = gen_random_uuid(), worker = null, pid = null, custom_state = null
    from stray where r.key = stray.key
    returning r.*
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'released'
    from released r where a.run_key = r.key and a.number = r.attempt
)
select id from released

-- name: owned
-- What a worker owns, to be compared with what it executes.
select r.id, r.fence from durable.run r join durable.worker w on w.id = r.worker
where w.token = %(token)s and r.state in ('running', 'cancelling')

-- name: revoke
-- Celery's revoke: a run that is not executing ends at once; an executing one only where its own worker
-- has just terminated it. Who wanted that is told by the event: whoever cancels may want it terminated, too.
-- A replay that was to find out what the run has to take back is given up if somebody has said so: the run ends as
-- if it had nothing.
with mine as (
    select r.key, r.state, r.ending is not null and r.rollbacks is null and %(terminated)s and exists (
               select from durable.event e
               where e.run_key = r.key and e.kind = 'gives up' and e.key > coalesce(
                   (select max(b.key) from durable.event b where b.run_key = r.key and b.kind = 'rolls back'), 0)
           ) as gives_up
    from durable.run r where r.id = %(id)s
    for no key update
), revoked as (
    update durable.run r
    set state = case when mine.gives_up then r.ending else 'cancelled' end,
        reason = case when mine.gives_up then r.ending_reason
                      when mine.state in ('running', 'cancelling') and r.cancel_requested then durable.cause_of(r.key)
                      else 'revoked' end,
        due = null, worker = null, pid = null, custom_state = null,
        finished_at = durable.clock(), unreported = true, fence = gen_random_uuid(),
        cascading = r.awaits is not null or r.replacements > 0,
        (ending, ending_reason, compensates, recoveries, recoveries_before) = (
            select (case when up then null else r.ending end), (case when up then null else r.ending_reason end),
                   (case when up then false else r.compensates end),
                   (case when up then r.recoveries + coalesce(r.recoveries_before, 0) else r.recoveries end),
                   (case when up then null else r.recoveries_before end)
            from (select mine.gives_up) as now (up))
    from mine
    where r.key = mine.key
      and (r.state in ('pending', 'waiting')
           or (r.state in ('running', 'cancelling') and %(terminated)s
               and exists (select from durable.worker w where w.id = r.worker and w.token = %(token)s)))
    returning r.key, r.attempt
), ended as (
    update durable.attempt a set ended_at = durable.clock(), outcome = 'cancelled'
    from revoked r where a.run_key = r.key and a.number = r.attempt and a.ended_at is null
)
select key from revoked

-- name: goes_on
-- Whether a run that a worker remembers as revoked is to be executed nevertheless: it takes back first what it has
-- done, or was resumed meanwhile, for a revoke would have ended it.
select key from durable.run where id = %(id)s and state = 'pending' and (ending is not null or generation > 0)

-- name: withdraw
-- The caller was told that the messages could not be sent: the runs never were.
with gone as (
    delete from durable.run
    where id = any(%(ids)s) and state in ('pending', 'waiting') and attempt = 0
    returning key, coalesce(root, id) as tree
), chains as (
    delete from durable.chain c
    where c.root = any(array(select tree from gone))
      and not exists (select from durable.run r
                      where r.root = c.root and r.root <> r.id and r.key <> all(array(select key from gone)))
      and not exists (select from durable.run r where r.id = c.root and r.key <> all(array(select key from gone)))
    returning c.id
)
delete from durable.chain_link l using chains where l.chain = chains.id

-- name: outbox_done
delete from durable.outbox where key = any(%(keys)s)

-- name: stored
-- A run's message, to be published again.
select id, message, body from durable.run where key = %(run)s

-- name: reported
-- Error callbacks, chain and chord of a failed or cancelled run have been told; or cannot be, for the reason given.
with told as (
    update durable.run set unreported = false where id = %(id)s and unreported returning key
)
insert into durable.event (run_key, kind, detail)
select key, 'callbacks failed', jsonb_build_object('error', %(problem)s::text)
from told where %(problem)s::text is not null

-- name: fail_unclaimed
-- Something in front of the body ended the task before its run was claimed.
update durable.run
set state = 'failed', reason = 'unclaimed', due = null, finished_at = durable.clock(),
    fence = gen_random_uuid(), result = %(result)s, result_type = %(result_type)s, traceback = %(traceback)s,
    unreported = false
where id = %(id)s and state = 'pending'
returning state

-- name: annotate
-- Labels and progress, for people.
update durable.run
set tags = coalesce(tags, '{}') || coalesce(%(tags)s::jsonb, '{}'), progress = coalesce(%(progress)s::jsonb, progress)
where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling')
returning key
