"""Arrays to numbers, each a documented formula. NumPy alone comes in and goes out."""
