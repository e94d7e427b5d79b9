"""A user's own training: watched for some steps, and played again."""
