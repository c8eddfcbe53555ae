"""An artifact in one sandbox, the tests that judge it in another, and plain data between them.

`wire` carries values, `serving` runs beside the artifact, `proxies` stands in for it beside the tests. These files are
copied into sandboxes, so they need the standard library only.
"""
