-- Signals on their way to a run; how one is received is part of its wait, see waits.sql.

-- name: deliver
-- Keep a signal for its run, and wake the run if it waits for it. The function is what SQL clients use, too.
select verdict, standing, message, body
from durable.deliver_signal(
    %(id)s::text, %(name)s::text, %(payload)s::bytea, %(codec)s::text, %(once)s::text, %(actor)s::text,
    %(until)s::timestamptz, %(check)s::interval)
