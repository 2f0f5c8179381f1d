"""Layer 2: the model that joins the slots, its loss, initialisation and building."""
