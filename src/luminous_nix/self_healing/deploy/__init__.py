"""What makes the trust boundary on a host: the unit files, users and polkit's rules, and who puts them there."""
