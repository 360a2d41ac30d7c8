-- The first schema: runs, their checkpoints and attempts, workers, and plain Celery results.
-- "pre" migrations run before new code is deployed and leave old workers working.

create function durable.clock() returns timestamptz
    language sql stable parallel safe
    as $$
    -- The one clock. Tests move it with `set durable.clock_offset = '1 hour'`.
    select now() + coalesce(nullif(current_setting('durable.clock_offset', true), ''), '0')::interval
    $$;

-- Domains, not CHECKs on the tables: Postgres parses a CHECK anew in every statement, a domain's once per session.
create domain durable.run_state as text constraint run_state check (
    value in ('pending', 'running', 'waiting', 'cancelling', 'succeeded', 'failed', 'cancelled'));
create domain durable.checkpoint_outcome as text constraint checkpoint_outcome check (
    value in ('ok', 'error', 'trying', 'started', 'discarded'));

create table durable.run (
    key              bigint generated always as identity primary key,
    id               text collate "C" not null constraint run_id_key unique,  -- "C": people type prefixes
    task             text not null,
    queue            text not null,
    priority         smallint,
    state            durable.run_state not null,
    reason           text,
    due              timestamptz,
    published_at     timestamptz,
    checks           integer not null default 0,
    revision         integer not null default 0,
    replacements     integer not null default 0,
    -- ownership: the fence is the id of the attempt that may write
    fence            uuid,
    attempt          integer not null default 0,
    generation       integer not null default 0,
    worker           bigint,
    pid              integer,
    retries          integer not null default 0,
    recoveries       integer not null default 0,
    cancel_requested boolean not null default false,
    -- a failed run whose error callbacks, chain and chord have not been told yet
    unreported       boolean not null default false,
    -- the message, as the broker gets it
    message          bytea not null,
    body             bytea not null,
    -- lineage
    parent           text collate "C",
    root             text collate "C",
    "group"          text collate "C",
    version          text,
    seed             uuid not null default gen_random_uuid(),
    tags             jsonb,
    progress         jsonb,
    -- what the caller sees
    custom_state     text,
    result           bytea,
    result_type      text,
    traceback        text,
    meta             bytea,
    expires_at       timestamptz,
    created_at       timestamptz not null default durable.clock(),
    claimed_at       timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    constraint run_running_has_an_owner check (
        state <> 'running' or (fence is not null and worker is not null and claimed_at is not null)),
    constraint run_idle_has_no_owner check (
        state in ('running', 'cancelling') or worker is null),
    constraint run_final_is_dated check (
        (state in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null)),
    -- the wake rule: whatever is not final is owned, due, or waits for somebody who will wake it
    constraint run_wakes check (
        state not in ('pending', 'waiting')
        or due is not null
        or (state = 'waiting' and coalesce(reason, '') in ('signal', 'children', 'slot', 'replaced')))
) with (fillfactor = 80);

create index run_waiting on durable.run (due) where state = 'waiting';
create index run_pending on durable.run (due) where state = 'pending' and published_at is not null;
create index run_unpublished on durable.run (due) where state = 'pending' and published_at is null;
create index run_owner on durable.run (worker) where state in ('running', 'cancelling');
create index run_finished on durable.run (finished_at) where state in ('succeeded', 'failed', 'cancelled');
create index run_unreported on durable.run (finished_at) where unreported;
create index run_tree on durable.run (root) where root <> id;
-- for people's lists and counts: together about 4 % of the time of a run without steps
create index run_listed on durable.run (state, key) include (reason);
create index run_task on durable.run (task, key);

create table durable.checkpoint (
    run_key     bigint not null,
    key         text collate "C" not null,
    seq         integer not null,
    outcome     durable.checkpoint_outcome not null,
    output      bytea,
    codec       text,
    digest      bytea not null,
    arguments   text not null,
    fence       uuid not null,
    attempt     integer not null,
    tries       integer not null,
    spent       integer not null default 0,
    error       text,
    clock       timestamptz[],
    seconds     double precision not null,
    stored_at   timestamptz not null default durable.clock(),
    primary key (run_key, key),
    constraint checkpoint_tries check (tries >= 1 and spent between 0 and tries)
);

create table durable.attempt (
    run_key    bigint not null,
    number     integer not null,
    fence      uuid not null,
    worker     bigint not null,
    hostname   text not null,
    pid        integer not null,
    started_at timestamptz not null default durable.clock(),
    ended_at   timestamptz,
    outcome    text,
    error      text,
    traceback  text,
    primary key (run_key, number),
    constraint attempt_outcome check (
        (outcome is null) = (ended_at is null)
        and outcome in ('succeeded', 'failed', 'cancelled', 'retry', 'released', 'suspended', 'replaced', 'lost'))
);

create table durable.event (
    key     bigint generated always as identity primary key,
    run_key bigint not null,
    at      timestamptz not null default durable.clock(),
    kind    text not null,
    actor   text,
    detail  jsonb
);
create index event_run on durable.event (run_key, key);

create table durable.worker (
    id         bigint generated always as identity primary key,
    token      uuid not null unique,
    hostname   text not null,
    pid        integer not null,
    version    text not null,
    started_at timestamptz not null default durable.clock(),
    beat       bigint not null default 0,
    beat_at    timestamptz not null default durable.clock(),
    reserved   integer not null default 0
) with (fillfactor = 50);

create table durable.leader (
    single     boolean primary key default true check (single),
    holder     bigint not null,
    term       bigint not null,
    expires_at timestamptz not null
) with (fillfactor = 50);

-- Messages to tasks that have no run (plain Celery tasks linked to a durable one), until they are published.
create table durable.outbox (
    key        bigint generated always as identity primary key,
    id         text not null unique,
    message    bytea not null,
    body       bytea not null,
    created_at timestamptz not null default durable.clock()
);

-- Results of plain Celery tasks that use this database as their result backend.
create table durable.result (
    task_id     text primary key,
    status      text not null,
    result      bytea,
    result_type text,
    traceback   text,
    meta        bytea,
    date_done   timestamptz not null default durable.clock()
) with (fillfactor = 80);
create index result_date_done on durable.result (date_done);

create table durable.result_group (
    id          text primary key,
    result      bytea not null,
    result_type text not null,
    date_done   timestamptz not null default durable.clock()
);
create index result_group_date_done on durable.result_group (date_done);
