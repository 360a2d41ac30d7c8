-- Long chains: signatures of what is to run after a task, stored once for all runs of the chain.

-- name: enqueue_chain
-- Links of a chain, with the run whose message names it; stored again they are the same.
with chain as (
    insert into durable.chain (id, root, content_type, content_encoding)
    select %(chain)s, %(root)s, %(content_type)s, %(content_encoding)s
    where %(holder)s::bigint is null
       or exists (select from durable.run where key = %(holder)s and fence = %(fence)s)
    on conflict (id) do nothing
)
insert into durable.chain_link (chain, number, signature)
select %(chain)s, new.number, new.signature
from unnest(%(numbers)s::integer[], %(signatures)s::bytea[]) as new (number, signature)
where %(holder)s::bigint is null or exists (select from durable.run where key = %(holder)s and fence = %(fence)s)
on conflict (chain, number) do nothing

-- name: link
-- One link: what comes next.
select l.number, l.signature, c.content_type, c.content_encoding
from durable.chain_link l join durable.chain c on c.id = l.chain
where l.chain = %(chain)s and l.number = %(number)s

-- name: links
-- All that is left of a chain, the last link first, as Celery keeps it.
select l.number, l.signature, c.content_type, c.content_encoding
from durable.chain_link l join durable.chain c on c.id = l.chain
where l.chain = %(chain)s and l.number <= %(number)s
order by l.number
