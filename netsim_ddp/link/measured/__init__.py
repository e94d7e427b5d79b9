"""Link profiles from measurements of real networks."""
