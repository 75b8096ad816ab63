"""Run files as bytes: handles, leases, damage and repair."""
