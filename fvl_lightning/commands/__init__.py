"""Layer 4: the verbs of the command line, one file each."""
