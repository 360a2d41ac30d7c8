-- The broker: queues, what they are bound to, their messages, and the processes that consume them.

create table durable.queue (
    name        text collate "C" primary key,
    auto_delete boolean not null default false,
    expires     interval,  -- without a consumer for so long the queue goes, with its messages
    ttl         interval,  -- how long a message waits in it at most
    used_at     timestamptz not null default durable.clock()
);

create table durable.binding (
    exchange    text collate "C" not null,
    kind        text not null,
    routing_key text collate "C" not null,
    queue       text collate "C" not null,
    pattern     text,  -- of a topic exchange: the routing keys that match
    primary key (exchange, queue, routing_key, kind)
);
create index binding_queue on durable.binding (queue);

-- One row for each connection that consumes. Its lease covers all the messages it holds, so that renewing it is
-- one small write, whatever their number.
create table durable.consumer (
    id         bigint generated always as identity primary key,
    hostname   text not null,
    pid        integer not null,
    backend    integer,  -- of the session that renews the lease; null where sessions are shared (PgBouncer)
    beat       bigint not null default 0,
    beat_at    timestamptz not null default durable.clock(),
    wakeable   boolean not null default false,  -- it waits to be told of a message
    queues     text[] not null default '{}',
    started_at timestamptz not null default durable.clock()
) with (fillfactor = 50);

create table durable.message (
    id         bigint generated always as identity primary key,
    queue      text collate "C" not null,
    priority   smallint not null,  -- 9 is delivered first
    payload    bytea not null,
    holder     bigint,             -- the consumer that has claimed it
    claims     integer not null default 0,  -- with holder and id: which claim of it this is
    returns    integer not null default 0,  -- rejected to be tried again, or lost with their consumer
    expires_at timestamptz,
    sent_at    timestamptz not null default durable.clock()
) with (
    -- A queue's table is emptied as fast as it is filled: what is dead must go before it is in the way.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);
-- An ordered scan for a claim: it reads the messages it takes, and no others.
create index message_ready on durable.message (queue, priority, id) where holder is null;
create index message_held on durable.message (holder) where holder is not null;
create index message_expiry on durable.message (expires_at) where expires_at is not null;
