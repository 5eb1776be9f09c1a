"""The HTML report. The Python here is pure: runs in, a `page.Page` out, whose charts are values.
`template.html`, `style.css` and the scripts show it, and know nothing of runs.
"""
