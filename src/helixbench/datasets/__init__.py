"""Raw data as their authors lay them out: one file a layout, a registry, a fingerprint; and a set
that is drawn in any of them.

Nothing is decided here: pictures and masks are found and paired. `prepare` opens and judges them.
"""
