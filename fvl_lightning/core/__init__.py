"""Layer 0: registry, configuration, shared types and errors. Imports nothing else of this project."""
