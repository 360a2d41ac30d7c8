-- Chords: parts are stored with what finishes them; whoever finds a chord complete afterwards starts its body.

-- name: expect
-- A chord is about to be applied: remember its body, and the shape of its header. A frozen chord that is applied
-- again after it was done begins anew.
with old as (
    delete from durable.chord_part p using durable.chord c
    where c.id = %(chord)s and c.done_at is not null and p.chord = c.id
)
insert into durable.chord as c (id, body, header, content_type)
values (%(chord)s, %(body)s, %(header)s, %(content_type)s)
on conflict (id) do update
set body = excluded.body, header = excluded.header, content_type = excluded.content_type,
    size = case when c.done_at is null then c.size end, extra = case when c.done_at is null then c.extra else 0 end,
    counted = case when c.done_at is null then c.counted else 0 end,
    claimed_by = case when c.done_at is null then c.claimed_by end,
    claimed_until = case when c.done_at is null then c.claimed_until end,
    check_at = excluded.check_at, done_at = null, created_at = excluded.created_at

-- name: size
-- How many parts there are. Told before the last one is sent, so the first ones may have been returned already.
insert into durable.chord as c (id, size) values (%(chord)s, %(size)s)
on conflict (id) do update set size = excluded.size

-- name: extend
-- One part more (Task.add_to_chord).
insert into durable.chord as c (id, extra) values (%(chord)s, 1)
on conflict (id) do update set extra = c.extra + 1

-- name: part
-- One part is over. However often it is delivered it counts once, and not at all when the chord is done. A run
-- stores it with its finish and names its fence: a superseded attempt returns no part.
insert into durable.chord_part (chord, task_id, position, state, result, result_type)
select %(chord)s, %(task_id)s, %(position)s, %(state)s, %(result)s, %(result_type)s
where (%(holder)s::bigint is null
       or exists (select from durable.run where key = %(holder)s and fence = %(fence)s and finished_at is not null))
  and not exists (select from durable.chord where id = %(chord)s and done_at is not null)
on conflict do nothing

-- name: look
-- Is the chord complete? If so, claim it. A transaction of its own behind the part's commit: of two parts that
-- finish together, the later one sees both. The sum needs one snapshot: parts are counted since the last
-- `add_up`, which moves them in one transaction. Of two that see it complete, one gets the claim, and what the body
-- needs.
with known as materialized (
    select c.id, c.size + c.extra - c.counted as missing, c.done_at is null as is_open
    from durable.chord c where c.id = %(chord)s
), fresh as materialized (
    select count(*) as parts from durable.chord_part where chord = %(chord)s and not counted
), claimed as (
    update durable.chord c
    set claimed_by = %(token)s, claimed_until = durable.clock() + %(lease)s::interval,
        check_at = durable.clock() + %(lease)s::interval
    from known, fresh
    where c.id = known.id and known.is_open and fresh.parts >= known.missing and c.done_at is null
      and (c.claimed_by is null or c.claimed_by = %(token)s or c.claimed_until <= durable.clock())
    returning c.id, c.body, c.header, c.content_type
)
select claimed.id is not null as complete, fresh.parts as uncounted, claimed.body, claimed.header, claimed.content_type
from fresh left join claimed on true

-- name: add_up
-- Counting all parts at each part would be quadratic, and a counter that every part raises would make them wait
-- for each other's commits. So the parts stored since the last time are counted, and every few dozen are moved
-- to the sum by whoever gets the row; nobody waits for it.
with chord as (
    select id from durable.chord where id = %(chord)s and done_at is null for update skip locked
), moved as (
    update durable.chord_part p set counted = true from chord where p.chord = chord.id and not p.counted
    returning p.task_id
)
update durable.chord c set counted = c.counted + (select count(*) from moved)
from chord where c.id = chord.id

-- name: results
-- The parts of a chord, in the order of its header.
select task_id, state, result, result_type from durable.chord_part
where chord = %(chord)s
order by case when position < 0 then 2147483647 else position end, task_id

-- name: finish
-- The body is stored in this very transaction: the parts have served. Repeated after a lost answer it recognises
-- itself by its claim.
with done as (
    update durable.chord set done_at = coalesce(done_at, durable.clock())
    where id = %(chord)s and claimed_by = %(token)s
    returning id
), parts as (
    delete from durable.chord_part p using done where p.chord = done.id
)
select id from done

-- name: overdue
-- Chords that have been open for a while: a look by the leader finds those whose last part nobody followed up.
-- The older a chord is, the rarer it is looked at.
with due as (
    select id from durable.chord where done_at is null and check_at <= durable.clock()
    order by check_at limit %(limit)s for update skip locked
)
update durable.chord c
set check_at = durable.clock() + least(interval '10 minutes', greatest(interval '1 minute', durable.clock() - c.created_at))
from due where c.id = due.id
returning c.id

-- name: expire
-- Chords past result_chord_expires, and parts of groups that never became one.
with chords as (
    delete from durable.chord where id = any(array(
        select id from durable.chord where created_at < durable.clock() - %(age)s::interval
        order by created_at limit %(limit)s for update skip locked))
    returning id
), parts as (
    delete from durable.chord_part p using chords where p.chord = chords.id
), stray as (
    delete from durable.chord_part p
    where p.stored_at < durable.clock() - %(age)s::interval
      and not exists (select from durable.chord c where c.id = p.chord)
)
select count(*) as chords from chords
