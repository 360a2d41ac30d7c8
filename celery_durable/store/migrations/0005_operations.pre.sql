-- Forks: where a run came from, and which runs came from it. Keys that stand for one run at a time.

alter table durable.run add column forked_from text collate "C";
create index run_forked on durable.run (forked_from) where forked_from is not null;

create table durable.once (
    task       text collate "C" not null,
    kind       text not null,
    key        text collate "C" not null,
    run        text collate "C" not null,
    expires_at timestamptz,
    primary key (task, kind, key)
);
create index once_run on durable.once (run);

-- Slots: runs that share a key, of which only so many may be executed at a time, or start in a while. Who holds a
-- slot is read from the runs themselves, so there is no count that could leak.
alter table durable.run
    add column slot        text collate "C",
    add column slot_limit  integer,           -- how many of the key may be executed at a time
    add column slot_rate   integer,           -- how many of it may start …
    add column slot_period interval,          -- … in this time
    add column slot_rank   smallint not null default 0;  -- who goes first: the highest, then the oldest

create index run_slot on durable.run (slot, state) where slot is not null;
create index run_slot_started on durable.run (slot, started_at) where slot_rate is not null;
create index run_slot_waiting on durable.run (slot, slot_rank desc, key) where state = 'waiting' and reason = 'slot';

create function durable.slot_taken(wanted text, besides bigint, patience interval) returns bigint
    language sql stable as $$
    -- Runs that hold a slot of a key: executed by a live worker, or woken for it and not claimed yet. A woken run
    -- whose message does not arrive holds it for a while only.
    select count(*) from durable.run o
    where o.slot = wanted and o.key <> besides
      and ((o.state in ('running', 'cancelling') and exists (select from durable.worker w where w.id = o.worker))
           or (o.state = 'pending' and o.reason = 'slot' and o.published_at > durable.clock() - patience))
    $$;

create function durable.slot_started(wanted text, besides bigint, since timestamptz, patience interval) returns bigint
    language sql stable as $$
    -- Runs of a key that have started since then, or are woken to do so.
    select (select count(*) from durable.run o
            where o.slot = wanted and o.slot_rate is not null and o.started_at > since and o.key <> besides)
         + (select count(*) from durable.run o
            where o.slot = wanted and o.state = 'pending' and o.reason = 'slot' and o.started_at is null
              and o.published_at > durable.clock() - patience and o.key <> besides)
    $$;

create function durable.slot_open(r durable.run, patience interval) returns boolean
    language sql stable as $$
    -- Whether a run may be claimed now. One that was not woken for a slot lets those go first that wait and come
    -- before it.
    select (r.slot_limit is null or durable.slot_taken(r.slot, r.key, patience) < r.slot_limit)
       and (r.slot_rate is null or r.started_at is not null
            or durable.slot_started(r.slot, r.key, durable.clock() - r.slot_period, patience) < r.slot_rate)
       and (coalesce(r.reason, '') = 'slot'
            or not exists (select from durable.run o
                           where o.slot = r.slot and o.state = 'waiting' and o.reason = 'slot'
                             and (o.slot_rank > r.slot_rank or (o.slot_rank = r.slot_rank and o.key < r.key))))
    $$;

-- The version of the application's code that a worker runs, where it is told; runs may want to end on theirs.
alter table durable.worker add column code text;
create index run_other_version on durable.run (version) where state = 'waiting' and reason = 'version';
