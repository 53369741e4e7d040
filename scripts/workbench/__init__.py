"""What scripts/studio.py is made of: settings, the engine that edits, and the page."""
