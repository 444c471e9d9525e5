"""Training on cached features: the base model runs once over each record, then all routers train together."""
