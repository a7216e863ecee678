"""Write `gatekey/_methods.py`: every unary method of the API, with the types of its request and its response.

Run by `make protos-python`. It reads the protos themselves: the client cannot be imported before the file is there.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
TARGET = Path(__file__).resolve().parent / "gatekey" / "_methods.py"

_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")


def main() -> None:
    """Write the file, formatted."""
    text = "\n".join(_lines(_read_protos()))
    ruff = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(TARGET), "-"]
    formatted = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, cwd=ROOT)
    TARGET.write_text(formatted.stdout)


def _read_protos() -> Sequence[FileDescriptorProto]:
    """Return the descriptors of all files of the API, without the files of others that they import."""
    with tempfile.NamedTemporaryFile() as output:
        files = sorted(map(str, PROTOS.glob("gatekey/v1/*.proto")))
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--descriptor_set_out={output.name}"]
        subprocess.run([*protoc, *files], check=True)
        return sorted(FileDescriptorSet.FromString(output.read()).file, key=lambda file: file.name)


def _lines(files: Sequence[FileDescriptorProto]) -> Iterator[str]:
    modules = {
        f".{file.package}.{message.name}": f"{Path(file.name).stem}_pb2"
        for file in files
        for message in file.message_type
    }
    yield '"""The methods of the API. Written by `make protos-python`."""'
    yield "from gatekey._calls import Method"
    yield f"from gatekey.v1 import {', '.join(sorted({modules[each] for each in _types(files)}))}"
    for file in files:
        for service in file.service:
            yield f"\n# {service.name}"
            for method in service.method:
                if method.client_streaming or method.server_streaming:
                    continue
                types = [f"{modules[each]}.{each.rsplit('.')[-1]}" for each in (method.input_type, method.output_type)]
                path = f"/{file.package}.{service.name}/{method.name}"
                yield f'{_WORD_START.sub("_", method.name).upper()} = Method("{path}", {", ".join(types)})'


def _types(files: Sequence[FileDescriptorProto]) -> Iterator[str]:
    for file in files:
        for service in file.service:
            for method in service.method:
                yield from (method.input_type, method.output_type)


if __name__ == "__main__":
    main()
