"""The OpenAPI document: the paths, what they take, and everything that they answer.

In: the settings. Out: a JSON object. Bodies are the classes of `bodies`, so what is checked is what is written here;
the bounds that the settings narrow are narrowed here too. Refuses to know: handlers.
"""

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from kandinsky5.server.bodies import (
    OBJECTS,
    EditBody,
    EditForm,
    EditJobBody,
    EditJobForm,
    GenerationBody,
    GenerationJobBody,
)
from kandinsky5.server.intake import SOURCES
from kandinsky5.server.settings import Settings
from kandinsky5.version import __version__

Json = dict[str, Any]

BODIES: Final = (GenerationBody, EditForm, EditBody, GenerationJobBody, EditJobForm, EditJobBody)


def document(settings: Settings) -> Json:
    """OpenAPI 3.1."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in BODIES], ref_template="#/components/schemas/{model}"
    )
    defined: Json = {**schemas["$defs"], **_answers()}
    for name in (kind.__name__ for kind in BODIES):
        fields = defined[name]["properties"]
        for field, most in (("n", settings.max_count), ("steps", settings.max_steps)):
            bound = fields[field]["anyOf"][0]
            bound["maximum"] = min(bound["maximum"], most)
    for form in (EditForm.__name__, EditJobForm.__name__):
        defined[form] = _with_files(defined[form])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kandinsky5",
            "version": __version__,
            "description": "OpenAI's image API, and jobs. Unknown fields are refused.",
        },
        "paths": _paths(),
        "components": {
            "schemas": defined,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if settings.keys else [],
    }


def _with_files(schema: Json) -> Json:
    """The fields of a form and the files beside them; the source has one of two names."""
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = dict.fromkeys((*SOURCES, "mask"), file)
    either = [{"required": [name]} for name in SOURCES]
    return {**schema, "properties": {**schema["properties"], **files}, "anyOf": either}


_PICTURE: Final[Json] = {f"image/{kind}": {"schema": {"type": "string"}} for kind in ("png", "jpeg", "webp")}

REFUSALS: Final = (400, 404, 409, 413, 415, 429, 500, 503, 504)
"""Of a request that is to be drawn."""


def _paths() -> Json:
    text = {"text/plain": {"schema": {"type": "string"}}}
    status, name = _object("status"), [_parameter("name", "path")]
    not_yet = {**status, "properties": {**status["properties"], "reason": {"type": "string"}}}
    now = "Whether a request would be drawn now."
    return {
        "/health": {"get": _operation("Whether the server answers.", _json(status), open_=True)},
        "/ready": {"get": _operation(now, _json(status), also={503: not_yet}, open_=True)},
        "/metrics": {"get": _operation("For Prometheus.", text)},
        "/openapi.json": {"get": _operation("This document.", _json({"type": "object"}), open_=True)},
        "/v1/models": {"get": _operation("The model served here.", _json(_ref("ModelList")))},
        "/v1/models/{name}": {
            "get": _operation("By its name.", _json(_ref("Model")), refusals=(404,), parameters=name)
        },
        **_image_paths(),
        **_job_paths(),
    }


def _image_paths() -> Json:
    name = [_parameter("name", "path")]
    drawn = _operation(
        "Pictures from text.",
        _pictures_or_events("image_generation"),
        refusals=REFUSALS,
        body=_json(_ref("GenerationBody")),
    )
    edited = _operation(
        "Edits of a picture; with a mask, its pixels are kept outside.",
        _pictures_or_events("image_edit"),
        refusals=REFUSALS,
        body=_either("EditBody", "EditForm"),
    )
    file = _operation("A picture behind a url.", _PICTURE, refusals=(404,), parameters=name, open_=True)
    return {
        "/v1/images/generations": {"post": drawn},
        "/v1/images/edits": {"post": edited},
        "/v1/images/files/{name}": {"get": file},
    }


def _pictures_or_events(kind: str) -> Json:
    """The answer of who waits, and what each event of a stream is."""
    names = [f"{kind}.partial_image", f"{kind}.completed", "error"]
    data = {"type": "string", "contentMediaType": "application/json"}
    event = {**_object(event={"enum": names}, data=data), "description": "Each event of the stream."}
    return {**_json(_ref("ImagesResponse")), "text/event-stream": {"schema": event}}


def _job_paths() -> Json:
    job, id_ = _json(_ref("Job")), _parameter("id", "path")
    wanted = _parameter("response_format", "query", {"enum": ["b64_json", "url"]})
    drawn = _operation(
        "Submit pictures from text.",
        job,
        status=202,
        refusals=REFUSALS,
        body=_json(_ref("GenerationJobBody")),
    )
    edited = _operation(
        "Submit edits.", job, status=202, refusals=REFUSALS, body=_either("EditJobBody", "EditJobForm")
    )
    pictures = _operation(
        "Its pictures.",
        _json(_ref("ImagesResponse")),
        refusals=(400, 404, 409, 410),
        parameters=[id_, wanted],
    )
    look = _operation(
        "How the first picture of a running job looks by now.", _PICTURE, refusals=(404,), parameters=[id_]
    )
    return {
        "/v1/jobs/generations": {"post": drawn},
        "/v1/jobs/edits": {"post": edited},
        "/v1/jobs": {"get": _operation("This key's jobs, the newest first.", _json(_ref("JobList")))},
        "/v1/jobs/{id}": {"get": _operation("One job.", job, refusals=(404,), parameters=[id_])},
        "/v1/jobs/{id}/cancel": {"post": _operation("Give it up.", job, refusals=(404,), parameters=[id_])},
        "/v1/jobs/{id}/preview": {"get": look},
        "/v1/jobs/{id}/result": {"get": pictures},
    }


def _operation(
    summary: str,
    content: Json,
    *,
    status: int = 200,
    refusals: tuple[int, ...] = (),
    also: dict[int, Json] | None = None,
    body: Json | None = None,
    parameters: list[Json] | None = None,
    open_: bool = False,
) -> Json:
    codes = sorted({403, *refusals} | (set() if open_ else {401}))
    answers: Json = {str(status): {"description": "Done.", "content": content}}
    answers |= {str(code): {"description": "Refused.", "content": _json(_ref("Error"))} for code in codes}
    for code, schema in (also or {}).items():
        answers[str(code)] = {"description": "Not now.", "content": _json(schema)}
    told: Json = {"summary": summary, "responses": answers}
    if open_:
        told["security"] = []
    if parameters is not None:
        told["parameters"] = parameters
    if body is not None:
        told["requestBody"] = {"required": True, "content": body}
    return told


def _either(json_name: str, form_name: str) -> Json:
    apart = {name: {"style": "deepObject", "explode": True} for name in OBJECTS}
    form = {"schema": _ref(form_name), "encoding": apart}
    return {**_json(_ref(json_name)), "multipart/form-data": form}


def _parameter(name: str, place: str, schema: Json | None = None) -> Json:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": {"type": "string", **(schema or {})},
    }


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(*texts: str, **others: Json) -> Json:
    properties = {**{name: {"type": "string"} for name in texts}, **others}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _answers() -> Json:
    whole, text = {"type": "integer"}, {"type": "string"}
    maybe_text, maybe_whole = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
    picture = {
        "type": "object",
        "properties": {
            "b64_json": text,
            "url": {"type": "string", "format": "uri"},
            "seed": whole,
            "revised_prompt": text,
        },
        "required": ["seed"],
    }
    problem = _object("message", "type", param=maybe_text, code=maybe_text)
    job = _object(
        *("id", "object", "kind"),
        status={"enum": ["queued", "running", "succeeded", "failed", "cancelled"]},
        created_at=whole,
        ended_at=maybe_whole,
        before_it=whole,
        steps_done=whole,
        steps_total=maybe_whole,
        previews=whole,
        size=maybe_text,
        model_parameters={"type": ["object", "null"]},
        error={"anyOf": [problem, {"type": "null"}]},
    )
    images = _object(
        *("background", "output_format", "quality", "size"),
        created=whole,
        data={"type": "array", "items": picture},
        usage={"type": "object"},
        model_parameters={"type": "object"},
    )
    return {
        "Error": _object(error=problem),
        "ImagesResponse": images,
        "Model": _model(),
        "ModelList": _object("object", data={"type": "array", "items": _ref("Model")}),
        "Job": job,
        "JobList": _object("object", data={"type": "array", "items": _ref("Job")}),
    }


def _model() -> Json:
    whole, text = {"type": "integer"}, {"type": "string"}
    number = {"type": "number"}
    limits = _object(
        max_pixels=whole,
        max_side=whole,
        size_multiple=whole,
        max_steps=whole,
        max_n=whole,
        max_guidance=number,
        max_lora_weight=number,
        max_prompt_characters=whole,
        max_body_bytes=whole,
    )
    texts = {"type": "array", "items": text}
    defaults = _object("size", sizes=texts, steps=whole, guidance=number, tasks=texts)
    model = _object(
        *("id", "object", "owned_by"),
        created=whole,
        limits=limits,
        expands_prompts={"type": "boolean"},
        loras=texts,
    )
    model["properties"]["defaults"] = {
        **defaults,
        "description": "Not there while the model is being loaded.",
    }
    return model
