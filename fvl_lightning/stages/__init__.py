"""Stages: LightningModules that differ in what they train and on what. One file per registered name."""
