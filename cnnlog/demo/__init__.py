"""A small network trained, fine-tuned and trained from scratch, watched: what the package does, in a minute."""
