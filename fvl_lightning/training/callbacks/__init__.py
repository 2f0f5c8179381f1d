"""Callbacks for the list `trainer.callbacks`. One file per registered name."""
