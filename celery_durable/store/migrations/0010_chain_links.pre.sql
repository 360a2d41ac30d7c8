-- Long chains: their links are stored once, and named by number in the messages of their runs.
-- Old workers neither write nor read any of it.

create table durable.chain (
    id               uuid primary key,
    root             text collate "C" not null,  -- the tree of runs whose messages name it, and that it goes with
    content_type     text not null,
    content_encoding text not null
);
create index chain_root on durable.chain (root);

create table durable.chain_link (
    chain     uuid not null,
    number    integer not null,  -- counted from the end of the chain: what is left of it keeps its numbers
    signature bytea not null,
    primary key (chain, number),
    constraint chain_link_number check (number >= 1)
);
