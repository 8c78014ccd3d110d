"""A comparison as one HTML file. In comes a `Comparison`, out goes the file."""
