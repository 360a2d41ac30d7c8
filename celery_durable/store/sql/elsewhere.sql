-- Transaction steps in a user's database on another server: the record that their effects are there lives there.

-- name: register
-- In front of the transaction, and committed on its own: from here on only this attempt may finish the step here.
-- Attempts of a run are numbered in the order of their claims, so that an older one cannot take it back.
insert into durable.transaction_step as t (run_id, step_key, attempt, fence)
values (%(run_id)s, %(key)s, %(attempt)s, %(fence)s)
on conflict (run_id, step_key) do update set attempt = excluded.attempt, fence = excluded.fence
where t.stored_at is null and t.attempt <= excluded.attempt

-- name: registered
-- Whose step it is now, and what is stored. A statement of its own, for a snapshot younger than the lock above.
select fence, stored_at is not null as stored, output, codec
from durable.transaction_step where run_id = %(run_id)s and step_key = %(key)s

-- name: look
-- Behind BEGIN: the mark by which a body is found out that ends the transaction itself.
select set_config('durable.transaction', %(mark)s::text, true) as mark,
       case when %(idle)s::text is not null
            then set_config('idle_in_transaction_session_timeout', %(idle)s::text, true) end as idle

-- name: keep
-- In front of COMMIT, in the same round trip: the record, if this attempt may still write it.
with stored as (
    update durable.transaction_step set output = %(output)s, codec = %(codec)s, stored_at = clock_timestamp()
    where run_id = %(run_id)s and step_key = %(key)s and fence = %(fence)s and stored_at is null
    returning step_key
)
select case when current_setting('durable.transaction', true) is distinct from %(mark)s::text
                 then durable.refuse('ended')
            when not exists (select from stored) then durable.refuse('stored')
            else false end as cancel_requested

-- name: missing
-- Is the table there?
select to_regclass('durable.transaction_step') is null as missing
