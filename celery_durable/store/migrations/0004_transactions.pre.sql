-- Transaction steps: the function with which a statement refuses the COMMIT that travels behind it.

create function durable.refuse(why text) returns boolean
    language plpgsql volatile
    as $$
    begin
        raise exception 'celery-durable refuses this commit: %', why using errcode = 'DU001', detail = why;
    end $$;
