"""Statistics of scores on tasks: intervals over new questions, and paired differences of models."""
