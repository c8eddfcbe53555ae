"""Readers that bring attempts from elsewhere into ℛ: one file a format. `log` reads a user's own JSON Lines."""
