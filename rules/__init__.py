"""What a recording means: spikes, detectors, rules, regimes, diagnosis.

Read ``diagnosis.py`` first: it turns a run into regimes, findings and one sentence.
"""
