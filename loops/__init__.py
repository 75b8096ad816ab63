"""Where the loop of a model is, and the loop as a function.

Read ``site.py`` first: a `LoopSite` is the whole interface between a model and what measures it. ``find.py`` is the way
in.
"""
