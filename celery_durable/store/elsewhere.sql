-- For transaction steps in a user's database on another server: `celery -A app durable init --database NAME`.
-- The record that a step's effects are there lives where they are.

create schema if not exists durable;
create table if not exists durable.transaction_step (
    run_id     text not null,
    step_key   text not null,
    attempt    integer not null,
    fence      uuid not null,
    output     bytea,
    codec      text,
    created_at timestamptz not null default now(),
    stored_at  timestamptz,
    primary key (run_id, step_key)
);
create or replace function durable.refuse(why text) returns boolean
    language plpgsql volatile
    as $$
    begin
        raise exception 'celery-durable refuses this commit: %', why using errcode = 'DU001', detail = why;
    end $$;
