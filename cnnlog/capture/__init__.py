"""A borrowed model: its layers, the probe, what it computes, given back untouched.

In come a module and a probe; out go `LayerInfo`s and `Snapshot`s, which hold NumPy arrays only. Torch ends here.
"""
