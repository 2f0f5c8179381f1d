"""Configuration: YAML files and overrides, merged and checked into dataclasses."""
