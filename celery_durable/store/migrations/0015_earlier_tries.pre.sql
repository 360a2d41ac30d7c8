-- Earlier tries of a step: when each one failed, after how long and with what. Old workers leave them as they are.

alter table durable.checkpoint
    add column earlier jsonb;  -- the last fifty before the stored one, oldest first; null: this is the first

create function durable.with_try(c durable.checkpoint) returns jsonb
    language sql stable
    as $$
    -- What the write that takes the place of a failed try keeps of it. Called where a checkpoint is written over,
    -- so that a step that succeeds at once pays nothing. A marker that a step was started is not a try.
    select case when c.outcome not in ('trying', 'discarded') then c.earlier
                else case when jsonb_array_length(c.earlier) >= 50 then c.earlier - 0
                          else coalesce(c.earlier, '[]') end
                     || jsonb_build_array(jsonb_build_object(
                         'at', extract(epoch from c.stored_at)::float8, 'seconds', c.seconds,
                         'attempt', c.attempt, 'error', left(c.error, 300)))
           end
    $$;
