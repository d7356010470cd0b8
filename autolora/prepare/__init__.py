"""Preparation of a dataset: tagging, auditing triggers and tags with the base model, and class images."""
