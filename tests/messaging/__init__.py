"""Plain Celery tasks on the Postgres broker: what a worker does with messages, without the safety of runs."""
