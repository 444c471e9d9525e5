import json, os
def write_json(path, value):
    tmp = path.with_suffix(".tmp"); tmp.write_text(json.dumps(value)); os.replace(tmp, path)
