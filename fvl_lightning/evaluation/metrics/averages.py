"""Names of the averages that a metric may report."""

OVER_KINDS = "macro"
"""The average over the kinds of question, each kind with the same weight."""
OVER_QUESTIONS = "overall"
"""The average over the questions."""
OVER_TASKS = "macro"
"""First part of the names of averages over tasks, each task with the same weight."""
