"""The specification: every cell in plain NumPy, to be read beside the equations.

`<cell>.py` holds one time step and its vector-Jacobian product; `loop.py` runs them through time.
Each works in any floating dtype.
"""
