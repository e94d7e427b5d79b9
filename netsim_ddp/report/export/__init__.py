"""Results as files for people, services and papers."""
