"""Runs and weights side by side: aligned by layer and step, with the numbers between them. No torch.

In come paths of runs and weights; out goes a `Comparison`, which reports draw.
"""
