-- A signal that is sent in SQL has a name that a run can wait for: one of another would be kept, and received by nobody.

create or replace function durable.send_signal(
    run_id text, name text, payload jsonb, idempotency_key text default null)
    returns text
    language plpgsql
    as $$
    -- For SQL: `select durable.send_signal('<run id>', 'approved', '{"by": "ada"}')`. Joins the transaction it is
    -- called in; the keeper wakes the run when that has committed. Returns 'woken', 'kept', or 'known' for an
    -- idempotency key that was sent before.
    declare
        outcome record;
    begin
        if coalesce(length($2), 0) not between 1 and 200 or $2 ~ '[[:cntrl:]]' then
            raise exception '% is no name of a signal: a printable text of 1 to 200 characters',
                coalesce(quote_literal($2), 'null') using errcode = 'invalid_parameter_value';
        end if;
        outcome := durable.deliver_signal(
            $1, $2, convert_to(coalesce($3, 'null')::text, 'UTF8'), 'json', $4, session_user::text, null, null);
        if outcome.verdict = 'unknown' then
            raise exception 'No run has the id %', $1 using errcode = 'no_data_found',
                hint = 'celery -A <app> durable runs lists those there are';
        elsif outcome.verdict = 'final' then
            raise exception 'The run % is over, it is %: it takes no signal', $1, outcome.standing
                using errcode = 'object_not_in_prerequisite_state';
        end if;
        return outcome.verdict;
    end
    $$;
