"""One file a method that turns a run's records into a policy, and what methods share.

May read fit and tune questions only. Methods of other packages are found through entry points.
"""
