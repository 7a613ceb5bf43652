"""Pages, plots, tables and pictures that the tools write."""
