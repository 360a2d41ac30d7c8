"""What celery-durable costs, as ratios measured within one run: `python -m benchmarks --help`."""
