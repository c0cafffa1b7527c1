"""The web page: a small page of our own, without a build step. It speaks to the server's HTTP API like anyone else.

`parts` (its files, and what a browser may do with them); the files themselves are in `static`. `page.js` puts the page
together; `api.js` (the server's paths), `form.js` (what is asked for), `source.js` and `mask.js` (what is edited, and
where), `follow.js` (a job on its way), `gallery.js` and `compare.js` (what came of it), `dom.js` (elements).
"""

from kandinsky5.webui.parts import HEADERS, PAGE, Part, parts

__all__ = ["HEADERS", "PAGE", "Part", "parts"]
