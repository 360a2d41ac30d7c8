"""Celery's own behaviours, each as two tasks of the same body: a plain one and a durable one."""
