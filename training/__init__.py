"""The loop and the life of a run. Nothing here knows a method."""
