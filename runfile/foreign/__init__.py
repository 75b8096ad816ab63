"""Logs that other tools wrote, as runs without a loop: trainer states, TensorBoard, CSV, JSON lines, W&B offline.

Read ``recognise.py`` first: which reader a path gets. Every reader gives a `table.LogTable`; `source.LogSource` puts
it behind `Run`.
"""
