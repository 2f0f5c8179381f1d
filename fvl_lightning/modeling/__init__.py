"""The model that joins the slots: its loss, initialisation and building, its processor, adapters and conversions."""
