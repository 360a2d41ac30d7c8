-- Steps of an `async def` body overlap, so their numbers, which are those of their ends, do not say what each of
-- them could know of when it was called.

alter table durable.checkpoint
    add column behind integer,  -- the number of the latest outcome it could know of; null: of the one before its own
    add column too_late boolean;  -- the body has cancelled it as its outcome was being stored

create function durable.branch_of(key text) returns text
    language sql immutable parallel safe as $$
    -- The scope of the asyncio task that made a call: `[2]/[1]/` of `[2]/[1]/fetch#2`; of the body itself, nothing.
    select coalesce(substring(key from '^(?:[^/]*/)*\[[0-9]+\]/'), '')
    $$;
