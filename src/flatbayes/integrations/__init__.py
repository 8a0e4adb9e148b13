"""Other people's training loops: Lightning and transformers, each imported only by the file that serves it.

Import `flatbayes.integrations.lightning` or `flatbayes.integrations.transformers`, whichever you train with.
"""
