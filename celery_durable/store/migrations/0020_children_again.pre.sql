-- A resumed run takes its waits for children up again: which wait one was is known when it is over, too.

alter table durable.checkpoint
    add column wait uuid;  -- of a wait for children: what these have in their rows

create function durable.waits_to_resume(of_run bigint) returns table (key text, wait uuid)
    language sql stable as $$
    -- The waits for children that a resume of the run takes up again: those that its end has cut short, and those
    -- with a child that did not succeed (or with results too large) behind which the body has got no further. Where
    -- it has, it has caught the error. Rows that an older worker has written name their wait in another way, or a
    -- child does. A fork keeps how the children of its source ended; they are not its own.
    with waited as materialized (
        select c.key, c.seq, c.outcome = 'waiting' as cut_short,
               coalesce(case c.outcome when 'waiting' then convert_from(c.output, 'UTF8')::uuid
                        else (select r.wait from durable.run r where r.id = told.child and r.parent = me.id) end,
                        c.wait) as wait
        from durable.run me join durable.checkpoint c on c.run_key = me.key
        left join lateral (
            select min(o ->> 0) as child, bool_or(o ->> 1 <> 'succeeded') as badly
            from json_array_elements(case when c.codec = 'children' and c.outcome = 'ok'
                                          then convert_from(c.output, 'UTF8') else '[]' end::json) as o) as told on true
        where me.key = of_run and c.kind = 'children'
          and (c.outcome in ('waiting', 'error') or (c.outcome = 'ok' and told.badly))
    ), progress as (
        select coalesce(max(c.seq), 0) as seq from durable.checkpoint c
        where c.run_key = of_run
          and (c.outcome = 'waiting'
               or (c.outcome = 'ok' and not exists (select from waited where waited.key = c.key)))
    )
    select waited.key, waited.wait from waited, progress
    where waited.wait is not null and (waited.cut_short or waited.seq >= progress.seq)
    $$;
