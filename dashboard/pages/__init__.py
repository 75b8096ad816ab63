"""The pages, one file each: a ``layout`` and a ``register(app)`` for its callbacks."""
