"""Datasets of captioned images: reading, concepts and triggers, captions, validation images, buckets, step table."""
