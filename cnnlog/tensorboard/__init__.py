"""TensorBoard as the viewer: its entry point, and a server with every step kept. Imports neither torch nor NumPy."""
