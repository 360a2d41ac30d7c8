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
