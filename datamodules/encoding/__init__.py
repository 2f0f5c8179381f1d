"""Samples encoded: messages -> token ids and labels."""
