-- Claims get a narrow table of their own: a message is written once and deleted once, and not moved in between.

create table durable.claim (
    message  bigint primary key,
    consumer bigint not null,
    number   integer not null  -- which claim of the message this is
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0
);

-- An ordered scan for a claim. What is claimed is stepped over: there is never much of it at the front for long,
-- for each consumer knows how far it has come.
create index message_order on durable.message (queue, priority, id);
drop index durable.message_ready;

-- Consumers of the release before write their claim into `holder`. They must not take what is claimed here; they
-- have locked the message, so that whoever claims here has committed, or steps over it.
create function durable.leave_claimed() returns trigger language plpgsql as $$
    begin
        return case when not exists (select from durable.claim where message = new.id) then new end;
    end
    $$;
create trigger leave_claimed before update of holder on durable.message for each row
    when (new.holder is not null and old.holder is null)
    execute function durable.leave_claimed();
