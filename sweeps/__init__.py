"""Grids of runs: what is trained, where, and how far it is.

Read ``grid.py`` first: it turns a TOML file into cells, each of which is one run. The engines train cells in
processes on this machine, on Ray, or as a job array of Slurm.
"""
