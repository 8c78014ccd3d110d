"""A comparison as one HTML file, which opens from disk. In comes a `Comparison`; out goes the file."""
