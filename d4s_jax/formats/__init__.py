"""Files in and out: photographs, videos, camera paths and scenes.

Readers treat every file as written by a stranger: sizes are bounded before anything is allocated,
fields are allow-listed, and whatever is wrong ends in one ValueError that names the file and the
place. No file can have code run, and nothing is unpickled: of the pickle in a file of PyTorch the
instructions that make tensors are carried out here, all others refused (`torch_tensors`).
Writers are atomic: a file or scene is there as a whole or not at all.
"""
