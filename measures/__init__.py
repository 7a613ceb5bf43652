"""Measures of encoders and classifiers: features and their cache, neighbours, attention, scores."""
