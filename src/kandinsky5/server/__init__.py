"""The HTTP edge: OpenAI's image API and a job interface over `kandinsky5.service`. Needs the extra `serve`.

`app` (what is where), `bodies` (what may be asked, in OpenAI's words), `translation` (those words into ours),
`uploads` (files of an edit), `masks` (what an edit leaves alone), `images`, `jobs` and `page` (the endpoints),
`asking` (a request from a handler's side), `answers` (pictures into bodies and events), `shelf` (pictures behind a
url), `shares` (what goes first where there is no room), `gate` (what every request passes), `keys`, `problems` (errors
in OpenAI's form), `logs`, `metrics`, `document` (OpenAPI), `running` (start, signals, shutdown).
"""
