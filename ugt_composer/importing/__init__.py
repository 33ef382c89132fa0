"""Interactions as people have them, to JSON Lines: tables, splits, preference pairs, semantic IDs and their quality."""
