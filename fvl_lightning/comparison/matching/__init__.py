"""Arms of equal size or price, and arms of equally many image tokens."""
