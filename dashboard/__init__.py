"""loopscope.dashboard."""
