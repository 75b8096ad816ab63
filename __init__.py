"""loopscope: stability analysis and diagnostics for looped language models."""
