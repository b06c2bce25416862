# Thresholds to start with and to end up with; the short names are good for detector.thresholds.

# Start with
thresholds = {'cpu': 90, 'memory': 90, 'disk': 95}

# Gradually tune to
thresholds = {'cpu': 75, 'memory': 80, 'disk': 85}
