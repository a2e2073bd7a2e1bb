"""Raw rows into hashed records: the first job."""
