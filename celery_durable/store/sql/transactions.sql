-- Transaction steps: a user's writes and their checkpoint commit together, in the store's own database.

-- name: look
-- Behind BEGIN: is the lease held, and is the step stored already (by this very transaction, whose answer was
-- lost)? The run's row is not locked yet: the body may take its time, and a worker frozen in it must not keep
-- the keeper from the run. The mark lasts as long as the transaction: a body that ends it itself is found out.
select set_config('durable.transaction', %(mark)s::text, true) as mark,
       case when %(idle)s::text is not null
            then set_config('idle_in_transaction_session_timeout', %(idle)s::text, true) end as idle,
       c.outcome, c.output, c.codec
from durable.run r
left join durable.checkpoint c on c.run_key = r.key and c.key = %(key)s and c.outcome in ('ok', 'error')
where r.key = %(run)s and r.fence = %(fence)s and r.state in ('running', 'cancelling')

-- name: keep
-- In front of COMMIT, in the same round trip: the fence under its lock, and the checkpoint. Whatever is wrong is an
-- error, so that the COMMIT is not executed. A finished checkpoint is never written again, not even by its own
-- attempt: the effects of this transaction would be there twice.
with fence as (
    select key, attempt, cancel_requested from durable.run
    where key = %(run)s and fence = %(fence)s and state in ('running', 'cancelling')
    for no key update
), stored as (
    insert into durable.checkpoint as c
        (run_key, key, seq, outcome, output, codec, digest, arguments, fence, attempt,
         tries, spent, error, clock, seconds)
    select fence.key, %(key)s, %(seq)s, %(outcome)s, %(output)s, %(codec)s, %(digest)s, %(arguments)s,
           %(fence)s, fence.attempt, %(tries)s, %(spent)s, %(error)s, %(clock)s, %(seconds)s
    from fence
    on conflict (run_key, key) do update
    set seq = excluded.seq, outcome = excluded.outcome, output = excluded.output, codec = excluded.codec,
        digest = excluded.digest, arguments = excluded.arguments, fence = excluded.fence,
        attempt = excluded.attempt, tries = excluded.tries, spent = excluded.spent, error = excluded.error,
        clock = c.clock || excluded.clock, earlier = durable.with_try(c),
        seconds = excluded.seconds, stored_at = excluded.stored_at
    where c.outcome in ('trying', 'discarded')
    returning key
)
select case when current_setting('durable.transaction', true) is distinct from %(mark)s::text
                 then durable.refuse('ended')
            when not exists (select from fence) then durable.refuse('lost')
            when not exists (select from stored) then durable.refuse('stored')
            else (select cancel_requested from fence) end as cancel_requested
