"""The plugin for lmms-eval, which finds it by the entry point `lmms_eval.models` and imports it from there."""
