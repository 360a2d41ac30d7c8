-- A consumer that has no room for more tasks still waits to be told of remote control.

alter table durable.consumer add column wanted text[];  -- what it waits to be told of; null (release before): all
