"""The Jacobian of the full loop, exact where it can be.

Read ``jacobian.py`` first. Not covered: laws of the trajectory (``dynamics.trajectory``).
"""
