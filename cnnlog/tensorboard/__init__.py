"""TensorBoard as the viewer: its entry point, and a server that keeps every step. Imports neither torch nor NumPy.

In come log folders; out goes the address of a running TensorBoard, and links to its page.
"""
