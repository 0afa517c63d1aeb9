"""Files in and out: photographs, videos, camera paths and scenes.

Readers treat every file as written by a stranger: sizes are bounded before anything is allocated,
fields are allow-listed, nothing is unpickled, and whatever is wrong ends in one ValueError that
names the file and the place. Writers are atomic: a file or scene is there as a whole or not at all.
"""
