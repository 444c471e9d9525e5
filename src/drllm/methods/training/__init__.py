"""How routers are trained: pooled states computed once, the focal loss, all routers in one loop.

Imported by the methods that train routers; it knows neither tasks nor the files of a run.
"""
