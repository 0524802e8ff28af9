"""One file a stage; `stage.py` says once how every stage is an asset."""
