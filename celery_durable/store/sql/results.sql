-- What Celery's result API reads and writes: one row for a run or for a plain task, and group results.

-- name: store
-- A plain task's state. Ids that are runs are left alone: their state changes through the run's own writes.
-- A run that was replaced by a plain task is over when that task is. A state of the user's own may be told to a
-- running run by anybody, as celery.contrib.abortable does.
with replaced as (
    update durable.run
    set state = case %(status)s::text when 'SUCCESS' then 'succeeded' when 'FAILURE' then 'failed' else 'cancelled' end,
        result = %(result)s, result_type = %(result_type)s, traceback = %(traceback)s, meta = %(meta)s,
        reason = null, finished_at = durable.clock()
    where id = %(task_id)s and state = 'waiting' and reason = 'replaced'
      and %(status)s::text in ('SUCCESS', 'FAILURE', 'REVOKED')
), told as (
    update durable.run set custom_state = %(status)s, result = %(result)s, result_type = %(result_type)s
    where id = %(task_id)s and state = 'running'
      and %(status)s::text not in ('PENDING', 'RECEIVED', 'STARTED', 'RETRY', 'SUCCESS', 'FAILURE', 'REVOKED', 'IGNORED')
)
insert into durable.result as r (task_id, status, result, result_type, traceback, meta)
select %(task_id)s, %(status)s, %(result)s, %(result_type)s, %(traceback)s, %(meta)s
where not exists (select from durable.run where id = %(task_id)s)
on conflict (task_id) do update
set status = excluded.status, result = excluded.result, result_type = excluded.result_type,
    traceback = excluded.traceback, meta = excluded.meta, date_done = excluded.date_done
where r.status <> 'SUCCESS'

-- name: get
-- Runs and plain results of these ids.
select r.id as task_id, durable.shown_state(r.state, r.ending, r.finished_at) as state, r.reason, r.custom_state, r.result, r.result_type, r.traceback, r.meta,
       r.finished_at as date_done, r.pid, w.hostname
from durable.run r left join durable.worker w on w.id = r.worker
where r.id = any(%(ids)s)
union all
select task_id, null, null, status, result, result_type, traceback, meta, date_done, null, null
from durable.result where task_id = any(%(ids)s)

-- name: finished
-- Those of these ids that are over, as soon as there is one or the time is up.
select * from durable.finished(%(ids)s, %(within)s, %(every)s, %(most)s)

-- name: forget_run
-- A final run goes with all that belongs to it, with the last one of a tree its chains; one that is not over stays.
with gone as (
    delete from durable.run where id = %(task_id)s and finished_at is not null
    returning key, id, coalesce(root, id) as tree
), checkpoints as (
    delete from durable.checkpoint c using gone where c.run_key = gone.key
), attempts as (
    delete from durable.attempt a using gone where a.run_key = gone.key
), events as (
    delete from durable.event e using gone where e.run_key = gone.key
), signals as (
    delete from durable.signal s using gone where s.run_key = gone.key
), chains as (
    delete from durable.chain c using gone
    where c.root = gone.tree
      and not exists (select from durable.run r where r.root = gone.tree and r.root <> r.id and r.key <> gone.key)
      and not exists (select from durable.run r where r.id = gone.tree and r.key <> gone.key)
    returning c.id
), links as (
    delete from durable.chain_link l using chains where l.chain = chains.id
), keys as (
    delete from durable.once o using gone where o.run = gone.id
)
delete from durable.result where task_id = %(task_id)s

-- name: save_group
insert into durable.result_group (id, result, result_type) values (%(id)s, %(result)s, %(result_type)s)
on conflict (id) do update set result = excluded.result, result_type = excluded.result_type

-- name: restore_group
select result, result_type, date_done from durable.result_group where id = %(id)s

-- name: delete_group
delete from durable.result_group where id = %(id)s

-- name: expire
-- Plain results and groups past result_expires; failures may have an age of their own.
with results as (
    delete from durable.result where task_id = any(array(
        select task_id from durable.result
        where date_done < durable.clock() - least(%(age)s::interval, %(failed_age)s::interval)
          and date_done < durable.clock()
                          - case when status = 'FAILURE' then %(failed_age)s::interval else %(age)s::interval end
        order by date_done limit %(limit)s for update skip locked))
    returning task_id
), groups as (
    delete from durable.result_group where id = any(array(
        select id from durable.result_group where date_done < durable.clock() - %(age)s::interval
        order by date_done limit %(limit)s for update skip locked))
    returning id
)
select (select count(*) from results) as results, (select count(*) from groups) as groups
