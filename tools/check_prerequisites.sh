#!/bin/sh
# Names what a bare machine lacks before anything is built. usage: check_prerequisites.sh PYTHON
python=$1
missing=0
say() {
  printf 'missing: %s\n' "$1" >&2
  missing=1
}

if ! command -v "$python" >/dev/null 2>&1; then
  say "Python >= 3.11 ('$python' is not on PATH; choose one with make PYTHON=/path/to/python3)"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "Python >= 3.11 ('$python' is $("$python" --version 2>&1); choose another with make PYTHON=/path/to/python3)"
else
  "$python" -c 'import venv, ensurepip' 2>/dev/null || say "Python's venv module (Debian, Ubuntu: apt install python3-venv)"
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    say "Python's headers (Debian, Ubuntu: apt install python3-dev)"
fi

cxx=${CXX:-c++}
if ! command -v "$cxx" >/dev/null 2>&1; then
  say "a C++17 compiler (Debian, Ubuntu: apt install g++; or set CXX)"
elif ! echo '#include <optional>
int main() { return std::optional<int>(0).value(); }' | "$cxx" -std=c++17 -x c++ -fsyntax-only - 2>/dev/null; then
  say "a C++17 compiler ('$cxx' does not compile C++17; set CXX to another)"
fi
exit $missing
