"""From footage to training records: metric scale, filters, captions, shards."""
