"""The trust boundary: what the engine asks the helper to do, and how the helper decides whether to believe it."""
