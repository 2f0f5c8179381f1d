"""Images: decoded safely, and resized for the encoder."""
