-- Forks: where a run came from, and which runs came from it.

alter table durable.run add column forked_from text collate "C";
create index run_forked on durable.run (forked_from) where forked_from is not null;
