"""Checks of a comparison before anything is trained."""
