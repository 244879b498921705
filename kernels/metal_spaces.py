#!/usr/bin/env python3
"""Asks a compiler of C++ for OpenCL whether the Metal sources keep address spaces apart.

Metal's own compiler runs on macOS and Windows only, and the emulator has one address space. What is
found: a pointer of one space given to a parameter of another, a pointer or reference without one,
program scope variables that are not `constant`, threadgroup memory outside of kernels, writes to
constants. What is not: all else that only Metal's compiler knows. Needs the package `libclang`.

usage: metal_spaces.py [source...]     all sources, if none is named
"""

import pathlib
import sys

import clang.cindex as cindex
from clang.cindex import CursorKind

HERE = pathlib.Path(__file__).resolve().parent
OPTIONS = [
    "-x", "clcpp", "-cl-std=CLC++2021", "-cl-no-stdinc", "--target=x86_64-linux-gnu",
    # Where parameters come from is known to the emulator's build, which asks for it.
    "-Wno-unknown-attributes", "-Wno-ignored-attributes", "-ferror-limit=0",
    f"-I{HERE}/emulator/include/stdlib",
]
# Without the generic address space a pointer that names none is a thread's, and so is `this`, as in
# Metal. But then this compiler takes some structures that are passed, made or assigned by value for
# ones of another space than a thread's, and says so in these words; whether they can be is the
# emulator's to find.
AS_IN_METAL = ["-Xclang", "-cl-ext=-all,+cl_khr_fp16"]
NOT_METALS = (
    "no matching constructor for initialization of",
    "call to implicitly-deleted default constructor of",
    "in default address space to object in address space '__private'",
)
# With it, pointers that name none can be told from those of a thread.
WITH_GENERIC = ["-Xclang", "-cl-ext=+cl_khr_fp16"]
# What has a type that is written in the source.
TYPED = {
    CursorKind.PARM_DECL, CursorKind.VAR_DECL, CursorKind.FIELD_DECL, CursorKind.TYPEDEF_DECL,
    CursorKind.CSTYLE_CAST_EXPR, CursorKind.CXX_REINTERPRET_CAST_EXPR,
    CursorKind.CXX_STATIC_CAST_EXPR,
}


def unit_of(source):
    """The text that is compiled: as in the emulator's build, what is shared goes first."""
    parts = [HERE / "metal_spaces.h", *sorted((HERE / "src/gpu").glob("*.metal")), source]
    return "".join(f'#include "{part}"\n' for part in parts)


def errors(unit):
    """What the compiler says, each error with its notes."""
    for found in unit.diagnostics:
        said = [found, *found.children]
        not_metals = any(words in one.spelling for one in said for words in NOT_METALS)
        if found.severity < cindex.Diagnostic.Error or not_metals:
            continue
        for one in said:
            indent = "" if one is found else "  "
            yield f"{indent}{one.location.file}:{one.location.line}: {one.spelling}"


def without_space(cursor):
    """Pointers that name no address space, which Metal refuses."""
    if cursor.kind in TYPED and "__generic" in cursor.type.get_canonical().spelling:
        at, name = cursor.location, cursor.spelling
        yield f"{at.file}:{at.line}: {name} names no address space: {cursor.type.spelling}"
    for child in cursor.get_children():
        if child.location.file and child.location.file.name.endswith(".metal"):
            yield from without_space(child)


def check(index, source):
    """What is wrong with a source, line by line."""
    files = [("unit.cl", unit_of(source))]
    yield from errors(index.parse("unit.cl", OPTIONS + AS_IN_METAL, files))
    yield from without_space(index.parse("unit.cl", OPTIONS + WITH_GENERIC, files).cursor)


def main(sources):
    index = cindex.Index.create()
    common = HERE / "src/gpu"
    found = [path for path in sorted((HERE / "src").glob("*/*.metal")) if path.parent != common]
    sources = [pathlib.Path(name).resolve() for name in sources] or found
    if not sources:
        sys.exit("no Metal sources found")
    wrong = [line for source in sources for line in check(index, source)]
    print("\n".join(wrong) if wrong else f"{len(sources)} Metal sources keep address spaces apart")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
