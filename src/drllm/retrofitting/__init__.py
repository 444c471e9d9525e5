"""All stages in one call: search, train, evaluate, answer, report.

Imports every stage; nothing imports it but `cli`.
"""
