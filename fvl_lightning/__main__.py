"""`python -m fvl_lightning` is `fvl`."""

from fvl_lightning.commands.main import main

main()
