"""Numbers and pictures of features themselves; no answers are scored here."""
