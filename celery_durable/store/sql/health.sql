-- What `doctor` looks at. Everything here reads, takes little, and works for a role that may only look.

-- name: ping
-- One round trip, and the server's clock in the middle of it.
select extract(epoch from clock_timestamp())::float8 as epoch

-- name: server
-- The server, and the settings on which durability rests.
select current_database() as database, current_user as role, version() as version,
       current_setting('server_version_num')::integer / 10000 as major,
       pg_backend_pid() as pid, pg_is_in_recovery() as standby,
       coalesce(nullif(current_setting('durable.clock_offset', true), ''), '0')::interval as clock_offset,
       current_setting('fsync') = 'on' as fsync,
       current_setting('full_page_writes') = 'on' as full_page_writes,
       current_setting('synchronous_commit') as synchronous_commit,
       current_setting('autovacuum') = 'on' as autovacuum,
       coalesce((select rolsuper from pg_roles where rolname = current_user), false) as superuser,
       pg_has_role(current_user, 'pg_read_all_stats', 'member') as sees_sessions,
       current_setting('max_connections')::integer as max_connections,
       (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections

-- name: held
-- Who keeps dead rows from being removed: old transactions, forgotten prepared ones, replication slots.
select 'session' as kind, pid::text as name, usename::text as owner, application_name as application,
       extract(epoch from clock_timestamp() - xact_start)::float8 as seconds, age(backend_xmin) as transactions
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null
  and backend_type = 'client backend'
union all
select 'prepared transaction', gid, owner::text, null,
       extract(epoch from clock_timestamp() - prepared)::float8, age(transaction)
from pg_prepared_xacts where database = current_database()
union all
select 'replication slot', slot_name::text, null, case when active then 'active' else 'inactive' end, null,
       greatest(age(xmin), age(catalog_xmin))
from pg_replication_slots where xmin is not null or catalog_xmin is not null
order by seconds desc nulls last limit 20

-- name: tables
-- The tables of the schema: what this role may do with them, how many dead rows they carry.
select c.relname::text as name,
       has_table_privilege(c.oid, 'select') as may_select, has_table_privilege(c.oid, 'insert') as may_insert,
       has_table_privilege(c.oid, 'update') as may_update, has_table_privilege(c.oid, 'delete') as may_delete,
       coalesce(s.n_live_tup, 0) as live, coalesce(s.n_dead_tup, 0) as dead,
       greatest(s.last_vacuum, s.last_autovacuum) as vacuumed_at, pg_total_relation_size(c.oid) as bytes
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_all_tables s on s.relid = c.oid
where n.nspname = %(schema)s and c.relkind = 'r'
order by c.relname

-- name: workers
-- Worker processes that have a row, and how long ago each one's heart last beat.
select w.id, w.hostname, w.pid, w.version,
       extract(epoch from durable.clock() - w.beat_at)::float8 as silent,
       (select count(*) from durable.run r where r.worker = w.id and r.state in ('running', 'cancelling')) as runs
from durable.worker w order by w.beat_at

-- name: leader
-- Who leads, and for how many seconds more.
select coalesce(w.hostname, 'a worker that is gone') as hostname, l.term,
       extract(epoch from l.expires_at - durable.clock())::float8 as remaining
from durable.leader l left join durable.worker w on w.id = l.holder

-- name: ailing
-- Runs that something should have moved on by now: how many (at most 1,000 are counted), the longest overdue.
select 'orphaned' as kind, count(*) as runs, max(seconds)::float8 as seconds, (array_agg(id))[1:3] as ids
from (select r.id, extract(epoch from durable.clock() - r.claimed_at) as seconds
      from durable.run r
      where r.state in ('running', 'cancelling') and r.worker is not null
        and not exists (select from durable.worker w where w.id = r.worker) limit 1000) as found
union all
select 'sleepless', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.created_at) as seconds
      from durable.run r where r.state = 'cancelling' and r.worker is null and r.due is null
      union all
      select r.id, extract(epoch from durable.clock() - r.created_at)
      from durable.run r where r.state = 'pending' and r.due is null
      union all
      select r.id, extract(epoch from durable.clock() - r.created_at)
      from durable.run r
      where r.state = 'waiting' and r.due is null
        and (r.reason is null or r.reason not in ('signal', 'children', 'turn', 'slot', 'replaced')) limit 1000) as found
union all
select 'overdue', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.due) as seconds
      from durable.run r where r.state = 'waiting' and r.due < durable.clock() order by r.due limit 1000) as found
union all
select 'unpublished', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.due) as seconds
      from durable.run r
      where r.state = 'pending' and r.published_at is null and r.due < durable.clock()
      order by r.due limit 1000) as found
union all
select 'unchecked', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.due) as seconds
      from durable.run r
      where r.state = 'pending' and r.published_at is not null and r.due < durable.clock()
      order by r.due limit 1000) as found
union all
select 'stranded', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.created_at) as seconds
      from durable.run r
      where r.state = 'waiting' and r.reason = 'version'
        and not exists (select from durable.worker w where w.code = r.version) limit 1000) as found
union all
select 'exhausted', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.finished_at) as seconds
      from durable.run r where r.state = 'failed' and r.reason = 'exhausted' and r.ending is null
      order by r.key desc limit 1000) as found
union all
select 'taken back', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.finished_at) as seconds
      from durable.run r where r.state = 'failed' and r.reason = 'exhausted' and r.ending is not null
      order by r.key desc limit 1000) as found
union all
select 'rollback', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select r.id, extract(epoch from durable.clock() - r.finished_at) as seconds
      from durable.run r where r.state = 'failed' and r.reason = 'rollback' order by r.key desc limit 1000) as found
union all
select 'outbox', count(*), max(seconds)::float8, (array_agg(id))[1:3]
from (select o.id, extract(epoch from durable.clock() - o.created_at) as seconds
      from durable.outbox o order by o.key limit 1000) as found
