"""What an artifact folder holds beside the models: the report, the manifest, the proof and run.py."""
