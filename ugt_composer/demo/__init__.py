"""The embedded data: a shop whose customers follow a law that is known exactly."""
