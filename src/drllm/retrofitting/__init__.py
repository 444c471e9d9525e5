"""All stages in one call: search, train, evaluate, report.

Imports every stage; nothing imports it but `cli`.
"""
