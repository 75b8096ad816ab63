"""One run on disk: its layout, writing, reading and export.

Read ``layout.py`` first. ``disk/`` repairs files and guards them, ``ranks/`` shows the files of several ranks as one
run.
"""
