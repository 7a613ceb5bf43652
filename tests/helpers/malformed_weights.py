"""Weight files that are wrong in one way each: {name: (file name, content, what the error must say)}."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable

import numpy as np

from storage.stored_tensor import StoredTensor
from storage.torch_file import write
from tests.helpers.weights_by_hand import HEADS, official_arrays

ARGUMENTS = ["-heads", str(HEADS)]
CANARY = "code-was-run"


def torch_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """Return a file of torch."""
    buffer = io.BytesIO()
    write(buffer, {name: StoredTensor.of(array) for name, array in arrays.items()}, "model")
    return buffer.getvalue()


def safetensors_bytes(arrays: dict[str, np.ndarray], change: Callable[[dict], None] = lambda header: None) -> bytes:
    """Return a .safetensors file, written out by hand, whose header was changed."""
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": {"float32": "F32", "float64": "F64", "int64": "I64"}[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def changed(**arrays: object) -> dict[str, np.ndarray]:
    """Return a small encoder with some tensors replaced; None takes one out."""
    result = official_arrays()
    for name, array in arrays.items():
        key = name.replace("__", ".")
        if array is None:
            del result[key]
        else:
            result[key] = array
    return result


def rezipped(edit: Callable[[dict[str, bytes]], object], **options: object) -> bytes:
    """Return torch's archive with edited members, or with options of zipfile for all of them."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes(official_arrays()))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_pickle(content: bytes) -> bytes:
    """Return torch's archive with another data.pkl."""
    return rezipped(lambda members: members.__setitem__("archive/data.pkl", content))


def with_flag(flag: int, name: bytes = b"") -> bytes:
    """Return torch's archive with a bit set in the flags of the entry data/3, and perhaps another name for it."""
    content = torch_bytes(official_arrays())
    entry = b"archive/data/3"
    local, central = content.index(entry) - 30, content.rindex(entry) - 46
    for start in (local + 6, central + 8):
        flags = int.from_bytes(content[start : start + 2], "little") | flag
        content = content[:start] + flags.to_bytes(2, "little") + content[start + 2 :]
    return content.replace(entry, name.ljust(len(entry), b"x")[: len(entry)]) if name else content


def twice_zipped() -> bytes:
    """Return torch's archive with one member twice."""
    buffer = io.BytesIO(torch_bytes(official_arrays()))
    with zipfile.ZipFile(buffer, "a") as archive, np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)
        archive.writestr("archive/data/0", b"other bytes")
    return buffer.getvalue()


def calls(module: str, name: str, argument: str) -> bytes:
    """Return a pickle that calls module.name(argument)."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def global_stack(module: str, name: str) -> bytes:
    """Return a pickle of protocol 4 that names something by two strings on the stack."""
    text = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + text + b"\x93\x8c\x04true\x85R."


def flipped(content: bytes, position: int) -> bytes:
    """Return the content with one bit turned."""
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def array_pickle(state: tuple) -> bytes:
    """Return a state dict whose array is built from a crafted state."""
    good = pickle.dumps({"a": np.zeros(3, np.float32)}, protocol=2)
    body = pickle.dumps(state, protocol=2)[2:-1]
    start = good.rindex(b"(K\x01")  # the state tuple (1, shape, dtype, order, bytes)
    return good[:start] + body + b"bs."


def duplicate_pickle() -> bytes:
    """Return a state dict in which one name stands twice."""
    array = pickle.dumps(np.zeros(3, np.float32), protocol=2)[2:-1]
    return b"\x80\x02}" + b"".join(b"X\x01\x00\x00\x00a" + array + b"s" for _ in range(2)) + b"."


def stride_bomb() -> bytes:
    """Return torch's archive with a tensor of 10^12 elements in a storage of one."""
    buffer = io.BytesIO()
    write(buffer, {"patch_embed.proj.weight": StoredTensor((1,), "float32", lambda: np.zeros(1, np.float32))}, "model")
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    shape, stride = b"(\x8a\x01\x01t", b"(\x8a\x01\x01t"
    huge = b"(\x8a\x06" + (10**12).to_bytes(6, "little") + b"t"
    members["archive/data.pkl"] = members["archive/data.pkl"].replace(shape + stride, huge + b"(\x8a\x00t", 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_cases() -> dict[str, tuple[str, bytes, str]]:
    """Return {what is wrong: (file name, content, part of the error message)}."""
    good = official_arrays()
    as_torch, as_pickle, as_safetensors = torch_bytes(good), pickle.dumps(good, protocol=4), safetensors_bytes(good)
    nan, infinite = good["norm.weight"].copy(), good["blocks.1.mlp.fc1.weight"].copy()
    nan[3], infinite[5, 5] = np.nan, np.inf
    wide = np.zeros((16, 17), np.float32)
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

    def header(edit):
        return safetensors_bytes(good, edit)

    def duplicate_header() -> bytes:
        text = as_safetensors[8 : 8 + int.from_bytes(as_safetensors[:8], "little")]
        entry = json.dumps({"norm.bias": json.loads(text)["norm.bias"]})[1:-1].encode()
        text = b"{" + entry + b", " + text[1:]
        return struct.pack("<Q", len(text)) + text + as_safetensors[-sum(array.nbytes for array in good.values()) :]

    return {
        # truncated, wrong magic, not weights at all
        "empty": ("a.pth", b"", "is empty"),
        "text": ("a.pdparams", b"these are not weights\n", "damaged or not a pickle"),
        "web page": ("a.pth", b"<!DOCTYPE html><html>Not found</html>", "damaged or not a pickle"),
        "truncated torch file": ("a.pth", as_torch[: len(as_torch) // 2], "truncated or damaged torch file"),
        "truncated pickle": ("a.pdparams", as_pickle[: len(as_pickle) // 2], "damaged or not a pickle"),
        "truncated safetensors": ("a.safetensors", as_safetensors[:-100], "not a readable safetensors file"),
        "truncated safetensors header": ("a.safetensors", as_safetensors[:40], "not a readable safetensors file"),
        "zip magic only": ("a.pth", b"PK\x03\x04", "truncated or damaged torch file"),
        "another zip archive": ("a.pth", rezipped(lambda members: members.clear()), "an empty zip archive"),
        "zip archive without weights": (
            "a.pth",
            rezipped(lambda members: (members.clear(), members.__setitem__("photo.jpg", b"x"))),
            "not torch's: it has 0 entries data.pkl",
        ),
        "torchscript": (
            "a.pt",
            rezipped(lambda members: members.__setitem__("archive/constants.pkl", b"x")),
            "a TorchScript program",
        ),
        "legacy torch file": ("a.pth", legacy + b"rest", "from before version 1.6; save it again with torch"),
        "flipped bit in a tensor": ("a.pth", flipped(as_torch, as_torch.index(b"data/3") + 40), "truncated or damaged"),
        # bombs
        "zip bomb": (
            "a.pth",
            rezipped(
                lambda members: members.__setitem__("archive/x", bytes(1 << 24)), compression=zipfile.ZIP_DEFLATED
            ),
            "is compressed, which torch never does",
        ),
        "stride bomb": ("a.pth", stride_bomb(), "a tensor of shape (1000000000000,) in a storage of 1 elements"),
        "memo bomb": ("a.pdparams", b"\x80\x02}r\xff\xff\xff\x7f.", "holds no tensors"),
        "length bomb": ("a.pdparams", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "it ends too early"),
        "frame bomb": ("a.pdparams", b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.", "it ends too early"),
        "array bomb": (
            "a.pdparams",
            array_pickle((1, (1 << 40,), np.dtype("f4"), False, b"1234")),
            "an array of shape (1099511627776,) and 4 bytes",
        ),
        "header bomb": ("a.safetensors", struct.pack("<Q", 1 << 50) + b"{}", "not a readable safetensors file"),
        "nested lists": ("a.pdparams", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", "expected a state dict"),
        # names
        "path traversal": (
            "a.pth",
            rezipped(lambda members: members.__setitem__("archive/../../x", b"x")),
            "points outside the archive",
        ),
        "absolute path": (
            "a.pth",
            rezipped(lambda members: members.__setitem__("/tmp/x", b"x")),
            "points outside the archive",
        ),
        "duplicate zip entry": ("a.pth", twice_zipped(), "2 entries of the name 'archive/data/0'"),
        "duplicate pickle entry": ("a.pdparams", duplicate_pickle(), "two entries of the name 'a'"),
        "duplicate safetensors entry": ("a.safetensors", duplicate_header(), "two entries of the name 'norm.bias'"),
        "two encoders": (
            "a.pth",
            torch_bytes({f"{part}.{name}": array for part in ("student", "online") for name, array in good.items()}),
            "holds 2 encoders",
        ),
        # crafted pickles
        "os.system": ("a.pdparams", calls("os", "system", f"touch {CANARY}"), "asks for os.system"),
        "posix.system": ("a.pdparams", calls("posix", "system", f"touch {CANARY}"), "asks for posix.system"),
        "eval": ("a.pdparams", calls("builtins", "eval", f"open('{CANARY}','w')"), "asks for builtins.eval"),
        "stack global": ("a.pdparams", global_stack("subprocess", "call"), "asks for subprocess.call"),
        "inst": ("a.pdparams", f"(S'touch {CANARY}'\nios\nsystem\n.".encode(), "an instance of os.system"),
        "extension code": ("a.pdparams", b"\x80\x02\x82\x01)R.", "a pickle instruction that plain data never needs"),
        "dotted name": ("a.pdparams", global_stack("numpy", "core.os.system"), "asks for numpy.core.os.system"),
        "call inside torch": ("a.pth", with_pickle(calls("os", "system", f"touch {CANARY}")), "asks for os.system"),
        "torch's own loader": ("a.pth", with_pickle(calls("torch", "load", "x")), "asks for torch.load"),
        "call of a value": ("a.pdparams", b"\x80\x02X\x01\x00\x00\x00a)R.", "the file calls a str"),
        "object array": ("a.pdparams", pickle.dumps({"a": np.array([None])}, protocol=2), "an array of 'O8'"),
        "attributes of a list": ("a.pdparams", b"\x80\x02]}b.", "sets attributes of a list"),
        "description that calls": (
            "a.pdparams",
            pickle.dumps(good, protocol=4) + calls("os", "system", f"touch {CANARY}"),
            "asks for os.system",
        ),
        "deep tuple as a name": ("a.pdparams", b"\x80\x04})" + b"\x85" * 300_000 + b"Ns.", "whose name is a tuple"),
        "large number as a name": ("a.pdparams", b"\x80\x04}\x8a\x09" + b"\x7f" * 9 + b"Ns.", "whose name is a int"),
        "bytearray bomb": ("a.pdparams", b"\x80\x04\x96" + struct.pack("<Q", 6 << 30) + b".", "it ends too early"),
        "many instructions": (
            "a.pdparams",
            b"\x80\x04" + b"}" * 3_000_000 + b".",
            "more instructions than plain data needs",
        ),
        "multiplied bytes": (
            "a.pdparams",
            b"\x80\x02c_codecs\nencode\nq\x000"
            + b"X\x00\x00\x10\x00"
            + b"a" * (1 << 20)
            + b"q\x01X\x06\x00\x00\x00latin1q\x020"
            + b"h\x00h\x01h\x02\x86R" * 50
            + b".",
            "makes more of its bytes",
        ),
        "shape of many sides": (
            "a.pdparams",
            array_pickle((1, (1 << 1600,) * 1000, np.dtype("f4"), False, b"1234")),
            "an array without a valid shape",
        ),
        "forged report line": (
            "a.pth",
            torch_bytes(changed(**{"teacher.x\n  heads  checked by the authors": np.zeros(1, np.float32)})),
            "the name of a tensor holds control characters",
        ),
        "duplicates among many": (
            "a.safetensors",
            (lambda text: struct.pack("<Q", len(text)) + text)(
                b'{"__metadata__":{' + b",".join(b'"%d":""' % (i % 150_000) for i in range(150_001)) + b"}}"
            ),
            "a.safetensors: ",
        ),
        "encrypted entry": ("a.pth", with_flag(0x1), "truncated or damaged torch file"),
        "name that is not text": ("a.pth", with_flag(0x800, name=b"archive/data/\xff"), "a.pth: "),
        # tensors
        "projection without sides": (
            "a.pth",
            torch_bytes(changed(patch_embed__proj__weight=np.array(1, np.float32))),
            "patch_embed.proj.weight is of shape []",
        ),
        "position table of two images": (
            "a.pth",
            torch_bytes(changed(pos_embed=np.zeros((2, 5, 16), np.float32))),
            "pos_embed is of shape [2, 5, 16]",
        ),
        "float64": (
            "a.pth",
            torch_bytes(changed(norm__bias=np.zeros(16, np.float64))),
            "encoder.norm.bias is float64, and weights are float32",
        ),
        "integers": (
            "a.safetensors",
            safetensors_bytes(changed(norm__bias=np.zeros(16, np.int64))),
            "encoder.norm.bias is int64",
        ),
        "unknown dtype": (
            "a.safetensors",
            header(lambda entries: entries["norm.bias"].__setitem__("dtype", "F12")),
            "not a readable safetensors file",
        ),
        "nan": (
            "a.pth",
            torch_bytes(changed(norm__weight=nan)),
            "encoder.norm.weight holds values that are not finite",
        ),
        "infinity": (
            "a.pth",
            torch_bytes(changed(blocks__1__mlp__fc1__weight=infinite)),
            "mlp.fc1.weight holds values",
        ),
        "missing tensor": (
            "a.pth",
            torch_bytes(changed(blocks__1__norm2__bias=None)),
            "encoder.layers.1.mlp_norm.bias is missing",
        ),
        "missing block": (
            "a.pth",
            torch_bytes({name: array for name, array in good.items() if not name.startswith("blocks.0.")}),
            "the first layer's fused query, key and value projection is missing",
        ),
        "missing norm": (
            "a.pth",
            torch_bytes(changed(norm__weight=None, norm__bias=None)),
            "encoder.norm.weight is missing",
        ),
        "extra tensor": ("a.pth", torch_bytes(changed(surprise=np.zeros(2, np.float32))), "have no place: surprise"),
        "layer scale": (
            "a.pth",
            torch_bytes(changed(blocks__0__ls1__gamma=np.zeros(16, np.float32))),
            "encoder.layers.0.gamma_2 is missing",
        ),
        "relative positions": (
            "a.pth",
            torch_bytes(changed(blocks__0__attn__relative_position_bias_table=np.zeros((9, 4), np.float32))),
            "encoder.layers.0.attn.position_bias.table is [9, 4] instead of",
        ),
        "mis-shaped tensor": (
            "a.pth",
            torch_bytes(changed(blocks__1__attn__proj__weight=wide)),
            "encoder.layers.1.attn.out.weight is [17, 16] instead of [16, 16]",
        ),
        "mis-shaped position table": (
            "a.pth",
            torch_bytes(changed(pos_embed=np.zeros((5, 16), np.float32))),
            "pos_embed is of shape [5, 16]",
        ),
        "patches that are not square": (
            "a.pth",
            torch_bytes(changed(patch_embed__proj__weight=np.zeros((16, 3, 4, 5), np.float32))),
            "patches of 4x5 pixels",
        ),
        "storage too short": (
            "a.pth",
            rezipped(lambda members: members.__setitem__("archive/data/0", b"1234")),
            "tensor storage '0' has 4 bytes instead of 64",
        ),
        "storage missing": (
            "a.pth",
            rezipped(lambda members: members.pop("archive/data/3")),
            "the bytes of tensor storage '3' are missing",
        ),
        "big-endian": (
            "a.pth",
            rezipped(lambda members: members.__setitem__("archive/byteorder", b"big")),
            "another byte order",
        ),
        "a convolutional network": (
            "a.pth",
            torch_bytes({"conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}),
            "not the weights of a ViT that is known here",
        ),
        "no tensors": ("a.pth", torch_bytes({}), "holds no tensors"),
    }


CASES = make_cases()
