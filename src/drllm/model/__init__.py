"""The routed model: wrap a base, carry the route in the cache, generate, save and load."""
