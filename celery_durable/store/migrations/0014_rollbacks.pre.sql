-- Compensations: a run that ends badly takes back first what it has registered with on_rollback.

alter table durable.run
    -- whether it has registered any: null while an attempt executes it, which alone knows
    add column compensates   boolean default false,
    -- how it ends when its compensations are done: such a run is claimed as `cancelling`
    add column ending        durable.run_state,
    add column ending_reason text,
    add column recoveries_before integer,  -- how often it had lost its worker by then: it may do so anew now
    -- the keys of its compensations, in the order in which they were registered; null: not known yet
    add column rollbacks     text[];

create function durable.roll_back_first() returns trigger
    language plpgsql
    as $$
    -- Whoever ends a run from outside (the keeper, an operator, a revoke, a deadline) does not know its
    -- compensations; nor does the store, if its last attempt was lost. So a run that may have some does not end
    -- yet: it becomes claimable, due now, and a worker replays it to find out.
    begin
        if new.ending is not null then
            if new.state = 'failed' then  -- it has lost its worker once too often while it rolled back
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

create trigger roll_back_first before update on durable.run for each row
    when (new.state in ('failed', 'cancelled') and new.finished_at is not null and old.finished_at is null
          and new.compensates is distinct from false)
    execute function durable.roll_back_first();
