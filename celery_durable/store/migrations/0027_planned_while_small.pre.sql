-- A prepared plan outlives the moment it was made for: what was small then may be large in the next.

-- While a queue is empty every index seems to cost the same, and to look up an id Postgres may then read all of the
-- order, with everything that is dead. Of an index with a condition it knows that an id alone does not lead there.
drop index durable.message_order;
create index message_order on durable.message (queue, priority, id) where holder is null;

-- Cut down to nothing, these would seem cheap to read from end to end; to cut them down would stop everybody, too.
alter table durable.message set (vacuum_truncate = false);
alter table durable.claim set (vacuum_truncate = false);

-- A table that was never analyzed is planned as if it had ten pages, which is by index. One that was analyzed with
-- fifty rows is read from end to end, by every connection, until it is analyzed again: a minute later, at most, by which
-- time there may be a hundred thousand. So the first time comes when an index is the better way.
alter table durable.run set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.checkpoint set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.attempt set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.event set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.signal set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.result set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.once set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.chain set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.chain_link set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
alter table durable.chord_part set (autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000);
