-- A run that was asked to stop ends with the reason for which it was asked, whoever notices it; and one that is
-- exhausted ends so, too, if the replay that was to find out what it has to take back is lost in the same way.

create function durable.cause_of(of_key bigint) returns text
    language sql stable as $$
    select coalesce((select e.detail ->> 'cause' from durable.event e
                     where e.run_key = of_key and e.kind = 'cancel_requested'
                     order by e.key desc limit 1), 'cancelled')
    $$;

create or replace function durable.roll_back_first() returns trigger
    language plpgsql
    as $$
    -- Whoever ends a run from outside (the keeper, an operator, a revoke, a deadline) does not know its
    -- compensations; nor does the store, if its last attempt was lost. So a run that may have some does not end
    -- yet: it becomes claimable, due now, and a worker replays it to find out.
    begin
        if new.ending is not null then
            if new.state = 'failed' then  -- it has lost its worker once too often while it rolled back
                if new.rollbacks is null and new.ending_reason = 'exhausted' then
                    -- Its replay is lost as the run itself was: nothing was found out, and a resume goes on with it.
                    new.reason := 'exhausted';
                    new.ending := null;
                    new.ending_reason := null;
                    new.result := old.result;
                    new.result_type := old.result_type;
                    new.recoveries := new.recoveries + coalesce(new.recoveries_before, 0);
                    new.recoveries_before := null;
                    insert into durable.event (run_key, kind, detail)
                    values (new.key, 'gives up', jsonb_build_object(
                        'reason', 'its replay is lost, too: whether it has something to take back is not known'));
                    return new;
                end if;
                new.reason := 'rollback';
                new.recoveries := new.recoveries + coalesce(new.recoveries_before, 0);
                new.recoveries_before := null;
                if new.ending = 'failed' then
                    new.result := old.result;
                    new.result_type := old.result_type;
                end if;
                return new;
            end if;
        else
            if new.attempt = 0 or (new.compensates is null and not exists (
                select from durable.checkpoint c
                where c.run_key = new.key and c.outcome = 'ok' and c.kind is null)) then
                return new;
            end if;
            new.ending := new.state;
            new.ending_reason := new.reason;
            new.recoveries_before := new.recoveries;
            new.recoveries := 0;
            insert into durable.event (run_key, kind, detail)
            values (new.key, 'rolls back', jsonb_build_object('ends as', new.state, 'reason', new.reason));
        end if;
        new.state := 'pending';
        new.reason := null;
        new.due := durable.clock();
        new.published_at := null;
        new.checks := 0;
        new.worker := null;
        new.pid := null;
        new.finished_at := null;
        new.unreported := false;
        return new;
    end
    $$;
