-- A run that lets a canvas take its place is cancelled with the members of the canvas.

create function durable.members_of(of_run text, tree text) returns table (key bigint)
    language sql stable as $$
    -- Those that are not over: what was sent while the run was at work and, for each of them that has succeeded, what
    -- was sent at its end or later: the next link of a chain. Children that a body waits for go with that body.
    with recursive member as (
        select c.key, c.id, c.state, c.finished_at, c.detached from durable.run c
        where c.root = tree and c.root <> c.id and c.parent = of_run and c.wait is null
        union all
        select n.key, n.id, n.state, n.finished_at, n.detached
        from member m join durable.run n on n.root = tree and n.root <> n.id and n.parent = m.id and n.wait is null
            and n.created_at >= m.finished_at
        where m.state = 'succeeded'
    )
    select key from member where finished_at is null and not detached
    $$;

create function durable.going_with(of_key bigint, of_run text, tree text, replacements integer) returns table (key bigint)
    language sql stable as $$
    -- Runs that are to be cancelled because this one was, and do not know it yet.
    select c.key
    from (
        select c.key
        from durable.checkpoint k join durable.run c
            on c.wait = case k.outcome when 'waiting' then convert_from(k.output, 'UTF8')::uuid else k.wait end
        where k.run_key = of_key and k.kind = 'children' and k.outcome in ('waiting', 'discarded')
          and c.finished_at is null and not c.detached
        union all
        select m.key from durable.members_of(of_run, tree) m where replacements > 0
    ) as found
    join durable.run c on c.key = found.key
    where not c.cancel_requested and c.ending is null
    $$;
