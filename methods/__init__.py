"""What each MODEL.TYPE is: one file per method, and the table of them in `dispatch.py`."""
