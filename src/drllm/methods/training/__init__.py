"""How routers are trained: pooled states computed once, the focal loss, all routers in one loop."""
