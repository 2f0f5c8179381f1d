"""The commands of `fvl`, one file each. A command imports what takes long when it runs, and not before."""
