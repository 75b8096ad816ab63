"""What runs inside the training steps. Read ``tap.py`` first: the hooks on the loop."""
