"""Offline search for good routes: the tree is pure, the runner feeds it verdicts."""
