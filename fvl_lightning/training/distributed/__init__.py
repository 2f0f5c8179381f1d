"""Process groups, sharding and Lightning strategies."""
