-- Waits (sleeps, signals, children), deadlines, and what a cancelled run takes with it.
-- Old workers neither write nor read any of it.

-- Every old value is a valid new one, so the tables need not be read again.
alter domain durable.checkpoint_outcome drop constraint checkpoint_outcome;
alter domain durable.checkpoint_outcome add constraint checkpoint_outcome check (
    value in ('ok', 'error', 'trying', 'started', 'discarded', 'waiting')) not valid;

alter table durable.checkpoint
    add column kind text,        -- null for a step; 'sleep', 'signal' or 'children' for a wait
    add column due timestamptz;  -- when a wait ends by itself, fixed by the database when it is first met

alter table durable.run
    add column awaits    text collate "C",  -- what it waits for: a signal's name, or a wait of its children
    add column wait      uuid,              -- the wait of its parent that ends with this run and its siblings
    add column abreast   integer,           -- how many runs of that wait may be executed at a time
    add column detached  boolean not null default false,  -- it outlives a cancelled parent
    add column cascading boolean not null default false,  -- cancelled; its children have not been yet
    add column deadline  timestamptz;

-- A child may wait for its turn among its siblings. The rows there are satisfy it: they did the narrower one.
alter table durable.run drop constraint run_wakes;
alter table durable.run add constraint run_wakes check (
    state not in ('pending', 'waiting')
    or due is not null
    or (state = 'waiting' and coalesce(reason, '') in ('signal', 'children', 'turn', 'slot', 'replaced'))) not valid;

-- Whoever asks whether a wait has an unfinished run finds one first: nulls stand together.
create index run_child on durable.run (wait, finished_at, key) where wait is not null;
create index run_awaiting_children on durable.run (key) where state = 'waiting' and reason = 'children';
create index run_cascading on durable.run (key) where cascading;
create index run_deadline on durable.run (deadline)
    where deadline is not null and finished_at is null and not cancel_requested;

create table durable.signal (
    key             bigint generated always as identity primary key,
    run_key         bigint not null,
    name            text collate "C" not null,
    payload         bytea not null,
    codec           text not null,
    idempotency_key text collate "C",
    actor           text,
    sent_at         timestamptz not null default durable.clock(),
    taken_by        text collate "C"  -- the key of the wait that received it; null: still in the queue
);
create unique index signal_once on durable.signal (run_key, name, idempotency_key);
create index signal_queue on durable.signal (run_key, name, key) where taken_by is null;

create function durable.deliver_signal(
    of_run text, named text, with_payload bytea, in_codec text, once text, by_whom text,
    until timestamptz, check_after interval,
    out verdict text, out standing text, out message bytea, out body bytea)
    language plpgsql
    as $$
    -- The one way in for a signal. The run is locked by its id alone and judged afterwards, so that a run which
    -- is just going to sleep is not missed: it looks for signals after it has taken the same lock.
    declare
        target record;
    begin
        select r.key, r.state::text, r.reason, r.awaits, r.finished_at, r.message, r.body into target
        from durable.run r where r.id = of_run for no key update;
        if not found then
            verdict := 'unknown';
            return;
        end if;
        standing := target.state;
        if once is not null and exists (
            select from durable.signal s
            where s.run_key = target.key and s.name = named and s.idempotency_key = once) then
            verdict := 'known';
            if target.state = 'pending' then  -- perhaps this very call, whose answer was lost
                message := target.message;
                body := target.body;
            end if;
            return;
        end if;
        if target.finished_at is not null then
            verdict := 'final';
            return;
        end if;
        if until <= durable.clock() then
            verdict := 'expired';
            return;
        end if;
        insert into durable.signal (run_key, name, payload, codec, idempotency_key, actor)
        values (target.key, named, with_payload, in_codec, once, by_whom);
        verdict := 'kept';
        if target.state = 'waiting' and target.reason = 'signal' and target.awaits = named then
            update durable.run r
            set state = 'pending', reason = null, checks = 0, due = durable.clock() + coalesce(check_after, '0'),
                published_at = case when check_after is not null then durable.clock() end
            where r.key = target.key;
            verdict := 'woken';
            message := target.message;
            body := target.body;
        end if;
    end
    $$;

create function durable.send_signal(run_id text, name text, payload jsonb, idempotency_key text default null)
    returns text
    language plpgsql
    as $$
    -- For SQL: `select durable.send_signal('<run id>', 'approved', '{"by": "ada"}')`. Joins the transaction it is
    -- called in; the keeper wakes the run when that has committed. Returns 'woken', 'kept', or 'known' for an
    -- idempotency key that was sent before.
    declare
        outcome record;
    begin
        outcome := durable.deliver_signal(
            $1, $2, convert_to(coalesce($3, 'null')::text, 'UTF8'), 'json', $4, session_user::text, null, null);
        if outcome.verdict = 'unknown' then
            raise exception 'No run has the id %', $1 using errcode = 'no_data_found',
                hint = 'celery -A <app> durable runs lists those there are';
        elsif outcome.verdict = 'final' then
            raise exception 'The run % is over, it is %: it takes no signal', $1, outcome.standing
                using errcode = 'object_not_in_prerequisite_state';
        end if;
        return outcome.verdict;
    end
    $$;
