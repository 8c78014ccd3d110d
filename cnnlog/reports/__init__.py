"""What people look at afterwards: strips, sheets, animations, the page, a TensorBoard run. No torch.

In comes a `Run` or a `Comparison`; out go files.
"""
