"""One picture as a file that carries the request it was made from.

In: a `GeneratedImage` and a path. Out: the file, whole or not at all; and back, what a file says about itself. What is
in it is `kandinsky5.provenance`. Refuses to know: names of files, who asked.
"""

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.provenance import PictureFormat, Provenance, encode_picture, stored_json

if TYPE_CHECKING:
    from kandinsky5.generated import GeneratedImage

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_THERE: Final = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOENT),
)


def write_picture(
    picture: "GeneratedImage",
    path: Path,
    fmt: PictureFormat,
    *,
    quality: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the picture with its provenance; missing folders are made. A file cut short is never left behind.

    `quality` is 1 to 100 for JPEG and WebP.

    Raises:
        RequestError: `path` is taken and `overwrite` is false, or no file can be written there.
        CapacityError: the disk is full, or the file larger than a limit allows.
        OSError: a failing disk.
    """
    data = encode_picture(picture, fmt, quality)
    temporary = path.with_name(f".kandinsky5-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _move(temporary, path, overwrite)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _explained(error: OSError, path: Path) -> Exception:
    """Whose an error of the file system is: the disk's room, the path that was chosen, or nobody's."""
    if error.errno in NO_ROOM:
        return CapacityError(
            f"{path} cannot be written: {error.strerror}; free some room, or choose another -o."
        )
    if error.errno in NOT_THERE:
        return RequestError(f"{path} cannot be written: {error.strerror}; choose another -o.")
    return error


def read_provenance(path: Path) -> Provenance:
    """What the picture at `path` says about itself. Raises RequestError when it is no picture or says nothing."""
    from kandinsky5.pictures import opened  # loads numpy and Pillow, which --help must not

    with opened(path, str(path)) as image:
        text = stored_json(image)
    if text is None:
        raise RequestError(f"{path} does not say how it was made; only pictures written by kandinsky5 do.")
    try:
        return Provenance.from_json(text)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error


def _move(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        # A link, unlike a rename, fails when another program took the name in the meantime.
        os.link(temporary, path)
    except FileExistsError as error:
        raise RequestError(
            f"{path} appeared while the picture was drawn; --overwrite replaces it."
        ) from error
    except OSError:
        if os.path.lexists(path):
            raise RequestError(
                f"{path} appeared while the picture was drawn; --overwrite replaces it."
            ) from None
        temporary.replace(path)
