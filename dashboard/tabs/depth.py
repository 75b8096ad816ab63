"""Depth: how many loops ran, how the loop settles with depth, and the loss against test-time depth."""

from . import Tab

TAB = Tab("depth", "Depth", 40, ("test-time", "profile", "depths"))
