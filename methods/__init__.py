"""Methods of training: one file for each MODEL.TYPE, and the table of them in `dispatch.py`."""
