"""How the world is changed."""
