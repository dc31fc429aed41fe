"""The demos as a web page: `minisd app`; see minisd/demos/README.md.

Gradio is imported here and nowhere else in minisd; it reports nothing about its use.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
