"""What to do about it. All pure: no clock, path, socket, process or log."""
