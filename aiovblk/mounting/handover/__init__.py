"""Handover: a live device goes from one process to another, with its connections."""
