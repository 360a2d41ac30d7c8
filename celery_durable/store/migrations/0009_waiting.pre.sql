-- Waiting for results: one question for all ids that a process waits for, asked again on the server for a while.

create function durable.finished(ids text[], within double precision, every double precision, most integer)
    returns table (task_id text, state text, reason text, custom_state text, result bytea, result_type text,
                   traceback text, meta bytea, date_done timestamptz, pid integer, hostname text)
    -- volatile: each look has a snapshot of its own, so that it sees what was committed while it slept.
    -- No sequential scans: a plan made while a table was small may be used for as long as the session lasts.
    language plpgsql volatile rows 10
    set enable_seqscan = off
    as $$
    #variable_conflict use_column
    declare
        latest constant timestamptz := clock_timestamp() + within * interval '1 second';
        began timestamptz;
        left_over double precision;
        pause double precision;
    begin
        loop
            began := clock_timestamp();
            return query
                select r.id, r.state::text, r.reason, r.custom_state, r.result, r.result_type, r.traceback, r.meta,
                       r.finished_at, r.pid, null::text
                from durable.run r
                where r.id = any(ids) and r.state in ('succeeded', 'failed', 'cancelled')
                union all
                select p.task_id, null, null, p.status, p.result, p.result_type, p.traceback, p.meta,
                       p.date_done, null, null
                from durable.result p
                where p.task_id = any(ids) and p.status in ('SUCCESS', 'FAILURE', 'REVOKED')
                  and not exists (select from durable.run r where r.id = p.task_id)
                limit most;
            exit when found;
            left_over := extract(epoch from latest - clock_timestamp());
            exit when left_over <= 0;
            -- looking takes a fifth of the time at most
            pause := greatest(every, 4 * extract(epoch from clock_timestamp() - began));
            perform pg_sleep(least(pause, left_over));
        end loop;
    end
    $$;
