"""The studio: a local page that draws by a base and by what runs trained, side by side, with the rewards' scores."""

import os

# Read when gradio is imported, which only modules of this package do: nothing is reported to anyone.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
