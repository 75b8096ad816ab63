"""loopscope.models."""
