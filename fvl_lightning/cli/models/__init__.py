"""The verbs that bring models in and out."""
