"""Beside the training, in a thread: snapshots are measured, stored, drawn and sent to the trackers. No torch.

In come snapshots; out go the files of a run, pictures and numbers for the trackers, and problems to be warned of.
"""
