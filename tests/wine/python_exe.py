"""Write the ``python.exe`` that the wheels do not carry: 2.5 KB of PE file, byte by byte, so no compiler is needed.

The program is ``argv = CommandLineToArgvW(GetCommandLineW(), &argc); ExitProcess(Py_Main(argc, argv));`` with the manifest
points of the official one that change how files behave (the supported systems and ``longPathAware``).
Layout: "PE Format" in Microsoft's documentation of Windows.
"""

import struct

MANIFEST = b"""<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<assembly xmlns="urn:schemas-microsoft-com:asm.v1" manifestVersion="1.0">
<trustInfo xmlns="urn:schemas-microsoft-com:asm.v3"><security><requestedPrivileges>
<requestedExecutionLevel level="asInvoker" uiAccess="false"/></requestedPrivileges></security></trustInfo>
<compatibility xmlns="urn:schemas-microsoft-com:compatibility.v1"><application>
<supportedOS Id="{8e0f7a12-bfb3-4fe8-b9a5-48fd50a15a9a}"/>
</application></compatibility>
<application xmlns="urn:schemas-microsoft-com:asm.v3"><windowsSettings>
<longPathAware xmlns="http://schemas.microsoft.com/SMI/2016/WindowsSettings">true</longPathAware>
</windowsSettings></application></assembly>
"""
IMAGE_BASE, SECTION_ALIGNMENT, FILE_ALIGNMENT = 0x140000000, 0x1000, 0x200
CODE, IMPORTS, RESOURCES = 0x1000, 0x2000, 0x3000  # relative virtual addresses of the three sections


def _aligned(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment


def _import_section(dlls: list[tuple[str, list[str]]]) -> tuple[bytes, dict[str, int], tuple[int, int]]:
    """Return the section, the address of each function's slot, and the (address, size) of the address table."""
    directory_size = _aligned(20 * (len(dlls) + 1), 8)
    table_size = sum(8 * (len(functions) + 1) for _, functions in dlls)
    names_at = directory_size + 2 * table_size
    directory, table, names, slots = b"", b"", b"", {}
    for dll, functions in dlls:
        lookup = IMPORTS + directory_size + len(table)
        for function in functions:
            slots[function] = IMPORTS + directory_size + table_size + len(table)
            table += struct.pack("<Q", IMPORTS + names_at + len(names))
            hint = b"\0\0" + function.encode() + b"\0"
            names += hint + b"\0" * (len(hint) % 2)
        table += bytes(8)
        directory += struct.pack("<5I", lookup, 0, 0, IMPORTS + names_at + len(names), lookup + table_size)
        name = dll.encode() + b"\0"
        names += name + b"\0" * (len(name) % 2)
    section = directory.ljust(directory_size, b"\0") + table + table + names
    return section, slots, (IMPORTS + directory_size + table_size, table_size)


def _manifest_section() -> bytes:
    def level(entry: int, offset: int) -> bytes:
        return struct.pack("<IIHHHHII", 0, 0, 0, 0, 0, 1, entry, offset)

    subdirectory = 0x80000000
    tree = level(24, subdirectory | 24) + level(1, subdirectory | 48) + level(0x409, 72)
    return tree + struct.pack("<4I", RESOURCES + 88, len(MANIFEST), 0, 0) + MANIFEST


def python_exe(python_dll: str) -> bytes:
    """The bytes of a console program that runs ``Py_Main`` of *python_dll*."""
    imports, slots, address_table = _import_section(
        [
            ("KERNEL32.dll", ["GetCommandLineW", "ExitProcess"]),
            ("SHELL32.dll", ["CommandLineToArgvW"]),
            (python_dll, ["Py_Main"]),
        ]
    )

    def call(code: bytes, function: str) -> bytes:
        return code + b"\xff\x15" + struct.pack("<i", slots[function] - (CODE + len(code) + 6))

    code = b"\x48\x83\xec\x38"  # sub rsp, 38h
    code = call(code, "GetCommandLineW")
    code += b"\x48\x89\xc1\x48\x8d\x54\x24\x28"  # mov rcx, rax; lea rdx, [rsp+28h]
    code = call(code, "CommandLineToArgvW")
    code += b"\x8b\x4c\x24\x28\x48\x89\xc2"  # mov ecx, [rsp+28h]; mov rdx, rax
    code = call(code, "Py_Main")
    code = call(code + b"\x89\xc1", "ExitProcess")  # mov ecx, eax

    manifest = _manifest_section()
    sections = [
        (b".text", CODE, code, 0x60000020),
        (b".rdata", IMPORTS, imports, 0xC0000040),
        (b".rsrc", RESOURCES, manifest, 0x40000040),
    ]
    directories = [(0, 0)] * 16
    directories[1], directories[2], directories[12] = (IMPORTS, 80), (RESOURCES, len(manifest)), address_table
    optional = struct.pack("<HBBIIIII", 0x20B, 14, 0, FILE_ALIGNMENT, 2 * FILE_ALIGNMENT, 0, CODE, CODE)
    optional += struct.pack(
        "<QIIHHHHHHIIIIHH", IMAGE_BASE, SECTION_ALIGNMENT, FILE_ALIGNMENT, 6, 0, 0, 0, 6, 0, 0, 0x4000, FILE_ALIGNMENT,
        0, 3, 0x8100,
    )  # fmt: skip
    optional += struct.pack("<QQQQII", 0x401000, 0x2000, 0x100000, 0x1000, 0, 16)
    optional += b"".join(struct.pack("<II", *entry) for entry in directories)
    header = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0"
    header += struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x23) + optional
    body = b""
    for name, address, data, flags in sections:
        size = _aligned(len(data), FILE_ALIGNMENT)
        header += struct.pack(
            "<8sIIIIIIHHI", name, len(data), address, size, FILE_ALIGNMENT + len(body), 0, 0, 0, 0, flags
        )
        body += data.ljust(size, b"\0")
    return header.ljust(FILE_ALIGNMENT, b"\0") + body
