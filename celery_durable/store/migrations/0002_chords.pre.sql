-- Chords: how many parts a group has, and which of them have been returned. And an age of failures of their own.

create table durable.chord (
    id            text collate "C" primary key,
    size          integer,
    extra         integer not null default 0,
    -- parts already added up; those since are counted at each look, see chords.sql
    counted       integer not null default 0,
    body          bytea,
    header        bytea,
    content_type  text,
    claimed_by    uuid,
    claimed_until timestamptz,
    check_at      timestamptz not null default durable.clock() + interval '1 minute',
    done_at       timestamptz,
    created_at    timestamptz not null default durable.clock(),
    constraint chord_claim check ((claimed_by is null) = (claimed_until is null))
) with (fillfactor = 50);

create index chord_open on durable.chord (check_at) where done_at is null;
create index chord_created_at on durable.chord (created_at);

create table durable.chord_part (
    chord       text collate "C" not null,
    task_id     text collate "C" not null,
    -- two members of a header may share one frozen id; -1 where Celery gives no index
    position    integer not null,
    state       text not null,
    result      bytea,
    result_type text,
    counted     boolean not null default false,
    stored_at   timestamptz not null default durable.clock(),
    primary key (chord, task_id, position)
);

create index chord_part_uncounted on durable.chord_part (chord) where not counted;

create function durable.kept_for(state text, age interval, failed_age interval) returns interval
    language sql immutable parallel safe
    as $$ select case when state = 'failed' then failed_age else age end $$;
