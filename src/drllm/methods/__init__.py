"""Ways to turn search records into a policy; one file each."""
