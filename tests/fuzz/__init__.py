"""Any bytes at every door that bytes come in by."""
