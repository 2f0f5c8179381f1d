"""The Python API: everything here can be imported from fvl_lightning itself, where it is loaded on first use."""
