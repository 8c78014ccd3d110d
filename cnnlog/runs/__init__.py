"""The files of a run, and a run read back. No torch.

In come records and a manifest; out go files, and from files a `Run` with its arrays and numbers.
"""
