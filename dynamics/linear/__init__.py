"""The linear part of the loop: spectra, responses, growth, certificates.

Read ``lti.py`` first. Not covered: the blocks of the loop (``dynamics.loop``).
"""
