"""Names of the averages that a metric may report."""

OVER_KINDS = "macro"
"""The average over the kinds of question, each kind with the same weight."""
OVER_QUESTIONS = "overall"
"""The average over the questions."""
