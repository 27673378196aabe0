"""The page in the browser: what `app.py` shows, and the work behind it.

`layout`, `theme`, `events`, `api` and `serve` use Gradio, which `pip install ".[app]"` brings.
"""
