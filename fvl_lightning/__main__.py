"""`python -m fvl_lightning` is `fvl`."""

from fvl_lightning.cli.main import main

main()
