"""Configuration: YAML files and overrides, merged and checked into dataclasses."""

from fvl_lightning.core.config.loading import as_plain, check_config, config_hash, load_config

__all__ = ["as_plain", "check_config", "config_hash", "load_config"]
