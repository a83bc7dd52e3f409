"""The runs that `compare_learning.py` compares; `python -m learning` trains one of them.

`framework` trains with xftrain, and `plain` with a script in the form of nanoGPT's.
"""
