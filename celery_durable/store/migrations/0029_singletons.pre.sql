-- A singleton that is resumed has its key again, or is not resumed while another run has it.

alter table durable.run add column singleton text collate "C";  -- its key; null for those of the release before
