"""Loggers beside metrics.jsonl, for the list `trainer.loggers`. One file per registered name."""
