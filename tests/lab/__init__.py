"""Real systemd hosts for the integration tests: a container and a virtual machine. See README.md."""
