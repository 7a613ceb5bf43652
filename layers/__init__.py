"""Parts of models, and the fastest way in which a device computes them. No configuration here."""
