"""Files that hold weights, and how files are read and written safely. No Paddle here."""
