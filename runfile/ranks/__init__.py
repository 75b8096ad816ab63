"""The files of several ranks as one run."""
