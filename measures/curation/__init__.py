"""What `tools.curate` finds in a set of images: copies, leaks, doubtful labels, outliers, and balanced choices."""
