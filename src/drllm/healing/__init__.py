"""Healing: a cheaper route brought back to the base's answers by an adapter, from prompts without labels.

The base at full depth is the teacher. Imports `scoring` and what lies below it; reads fit questions only.
"""
