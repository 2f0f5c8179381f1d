"""Statistics of a comparison: contrasts, intervals and verdicts."""
