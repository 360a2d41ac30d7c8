-- Steps of an `async def` body overlap, so their numbers, which are those of their ends, do not say what each of
-- them could know of when it was called.

alter table durable.checkpoint
    add column behind integer;  -- the number of the latest outcome it could know of; null: of the one before its own
