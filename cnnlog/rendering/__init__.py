"""Arrays to pictures: what is shown, in which range and colours, as a grid, a PNG or a figure.

In come NumPy arrays; out go grids, PNG bytes and matplotlib figures. Nothing here knows of runs or their files.
"""
