"""Raw data as their authors lay them out: one file a layout, a registry, a fingerprint, and a set that is drawn.

Nothing is decided here: pictures and masks are found and paired, never opened. `prepare` reads them.
"""
