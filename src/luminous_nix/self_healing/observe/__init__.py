"""How the world is read. Each sensor fails alone; no data is unknown, never healthy and never failed."""
