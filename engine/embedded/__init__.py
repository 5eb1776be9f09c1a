"""The small Llama that ships with the package, so that a server runs without any download.

``README.md`` beside this file is the model card; `FOLDER` is where the model's files lie.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
