"""What grows with the data: manifests, digests of media, intervals, frames on the way, in CPU time.

Each way runs in a process of its own; old and new ways that are both at hand alternate, with median and range.

    PYTHONPATH=src python perf/growth.py                       # all parts, small
    PYTHONPATH=src python perf/growth.py manifest --rows 1000000
    PYTHONPATH=src python perf/growth.py digests --files 2000 --megabytes 2
    PYTHONPATH=src python perf/growth.py intervals --clips 5000
    PYTHONPATH=src python perf/growth.py frames --video clip.mp4
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("happy", "sad", "angry", "worried", "surprised", "ill at ease", "relieved", "proud", "ashamed", "calm")
MEASURES = 11
"""Of a summary."""


def show(name, seconds, more=""):
    spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
    print(f"{name:<52} {statistics.median(seconds):8.3f} s CPU ({spread}) {more}".rstrip(), flush=True)


def timed(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def in_process(part, **given):
    """CPU seconds and peak MiB that a part reports of a fresh process."""
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, f"in-{part}", *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_rows(path, rows):
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            row = {"id": f"train-{index:07d}", "video": f"clips/train-{index:07d}.mp4", "audio": None}
            row |= {"subtitle": f"I did not think that you would come back so soon, for the {index}th time."}
            row |= {"labels": rng.sample(WORDS, 2), "reasoning": None, "split": "train", "meta": {}}
            file.write(json.dumps(row) + "\n")


def manifest(given, folder):
    path = folder / "manifest.jsonl"
    write_rows(path, given.rows)
    runs = [in_process("manifest", path=path) for _ in range(given.rounds)]
    memory = max(run["peak"] for run in runs)
    show(f"manifest of {given.rows:,} rows", [run["seconds"] for run in runs], f"peak {memory:,.0f} MiB")


def digests(given, folder):
    for index in range(given.files):
        (folder / f"{index}.mp4").write_bytes(os.urandom(int(given.megabytes * 1e6)))
    time.sleep(3)  # newer files are not kept
    name = f"{given.files:,} files of {given.megabytes} MB"
    for start in ("first", "second", "third"):
        show(f"digests of {name}, {start} start", [in_process("digests", path=folder)["seconds"]])


def intervals(given, folder):
    import numpy as np

    from mer_r1.evaluation.intervals import bootstrap, bootstraps

    columns = dict(enumerate(np.random.default_rng(0).random((MEASURES, given.clips))))
    assert bootstraps(columns) == {name: bootstrap(values) for name, values in columns.items()}
    apart, together = [], []
    for _ in range(given.rounds):
        apart.append(timed(lambda: [bootstrap(values) for values in columns.values()]))
        together.append(timed(lambda: bootstraps(columns)))
    show(f"{MEASURES} measures of {given.clips:,} clips, each drawn for itself", apart)
    show(f"{MEASURES} measures of {given.clips:,} clips, drawn once", together)


def frames(given, folder):
    import numpy as np

    from mer_r1.data.media import picture
    from mer_r1.data.media.read import read_media

    video = given.video or _film(folder / "film.mp4")
    telling, found = picture._TELL_UNREFERENCED, {}
    ways = {"every frame decoded": (), "unwanted frames skipped": telling}
    for _ in range(given.rounds):
        for name, codecs in ways.items():
            picture._TELL_UNREFERENCED = codecs
            start = time.process_time()
            media = read_media(video)
            found.setdefault(name, []).append((time.process_time() - start, media.frames))
    first = next(iter(found.values()))[0][1]
    for name, runs in found.items():
        same = all(np.array_equal(first, images) for _, images in runs)
        show(f"8 frames, {name}", [seconds for seconds, _ in runs], "identical" if same else "ANOTHER PICTURE")


def _film(path, seconds=8, fps=25, size=(720, 1280)):
    """A disc that moves before a textured wall, with B-frames."""
    import av
    import numpy as np

    wall = np.random.default_rng(0).integers(90, 160, (size[0] // 8, size[1] // 8, 3)).repeat(8, 0).repeat(8, 1)
    rows, columns = np.indices(size)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 250
        for index in range(seconds * fps):
            disc = (rows - 360) ** 2 + (columns - 100 - 5 * index) ** 2 < 120**2
            image = np.where(disc[..., None], 230, wall).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def read_rows(path):
    from mer_r1.data.manifest import read_manifest

    start = time.process_time()
    clips = read_manifest(path)
    report(time.process_time() - start)
    assert clips


def read_digests(path):
    from mer_r1.data.media.read import content_key

    report(timed(lambda: [content_key(file) for file in path.glob("*.mp4")]))


def report(seconds):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


PARTS = {"manifest": manifest, "digests": digests, "intervals": intervals, "frames": frames}
INSIDE = {"in-manifest": read_rows, "in-digests": read_digests}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--clips", type=int, default=5_000)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.parts and given.parts[0] in INSIDE:
        INSIDE[given.parts[0]](given.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MER_R1_CACHE_DIR"] = str(Path(folder, "cache"))
        for part in given.parts or PARTS:
            inside = Path(folder, part)
            inside.mkdir()
            PARTS[part](given, inside)


if __name__ == "__main__":
    main()
