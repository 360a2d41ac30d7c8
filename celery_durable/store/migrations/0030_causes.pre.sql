-- A run that was asked to stop ends with the reason for which it was asked, whoever notices it.

create function durable.cause_of(of_key bigint) returns text
    language sql stable as $$
    select coalesce((select e.detail ->> 'cause' from durable.event e
                     where e.run_key = of_key and e.kind = 'cancel_requested'
                     order by e.key desc limit 1), 'cancelled')
    $$;
