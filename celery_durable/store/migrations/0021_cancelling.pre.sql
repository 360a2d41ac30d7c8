-- Who looks at a run that takes back what it has done sees `cancelling` from the moment its end was decided, also
-- while it waits for a worker: then its row says `pending` or `waiting`, which is what the keeper and a claim go by.

create function durable.shown_state(state text, ending text, finished_at timestamptz) returns text
    language sql immutable parallel safe
    as $$ select case when ending is not null and finished_at is null then 'cancelling' else state end $$;

-- Few at any time: so they are found, and counted, apart.
create index run_cancelling on durable.run (key) where ending is not null and finished_at is null;
