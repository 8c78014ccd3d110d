"""Arrays to pictures: what is shown, in which range and colours, as a grid, a PNG or a figure.

Nothing here knows of runs, steps or files of a run.
"""
