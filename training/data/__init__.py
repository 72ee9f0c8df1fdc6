"""Clips with a known truth, made or found: what training and its validation see. Importing it imports nothing."""
