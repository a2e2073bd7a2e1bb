"""The drawing of the rooms and of what they import."""
