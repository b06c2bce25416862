# Choose between the development and the service mode; the variable is read when an engine is made.

# Development mode (for testing)
import os
os.environ['LUMINOUS_DEV_MODE'] = '1'

# Service mode (production - default)
# Requires SystemD service configuration
