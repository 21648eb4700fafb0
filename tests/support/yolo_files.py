"""Write small YOLO datasets."""

from PIL import Image

SIZE = (100, 50)  # w, h of all images


def write(root, files, size=SIZE):
    """Write files by name below `root`: text, bytes, or None for a gray image of `size`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("L", size, 90).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
    return root
