"""loopscope.dynamics."""
