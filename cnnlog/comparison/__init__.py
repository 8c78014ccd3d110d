"""Runs and weights side by side: aligned by layer and step, with the numbers between them. No torch.

In come paths of runs and of weights; out goes a `Comparison`, and its pictures step by step. Reports write both down.
"""
