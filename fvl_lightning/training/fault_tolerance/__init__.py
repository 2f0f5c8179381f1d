"""Signals, heartbeats and hang detection: a training stops in order and can be resumed."""
