"""The page of `fvl serve`."""
