"""Files of a checkpoint, read with suspicion: what they hold is known before a library loads them.

`document` is a JSON object, `safetensors_header` one file's table of tensors, `weights` a folder's files as one table,
`finite` the values. Everything wrong is a `CheckpointError` that names the file and, where there is one, the tensor.
Nothing here knows networks or pipelines.
"""
