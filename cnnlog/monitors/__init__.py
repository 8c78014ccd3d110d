"""What to watch and when: callbacks for Lightning, `watch` for other loops, `replay` for checkpoints."""
