#!/usr/bin/env bash
# Makes or reuses .venv and installs compcomm with the extras named as arguments: bash launch/setup.sh test bench
#
# What was installed is remembered by a checksum over everything that enters the build, so a second call takes a
# second, and a changed kernel, option or pin leads to a new build. Python files are used where they lie.
# $PYTHON names another interpreter, $COMPCOMM_CONSTRAINTS another file of pins (/dev/null: whatever is installed).
# Needs Python 3.10 or later and a package registry; a C++ compiler and iproute2 are wanted: root gets them by apt-get
# unless COMPCOMM_NO_APT=1, everyone else is told what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

# 3.11 first: wheels of every dependency exist for it in most mirrors and caches; then the newest.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.14 python3.13 python3.12 python3.10 python3 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        elif [ "$candidate" = "${PYTHON:-}" ]; then
            say "PYTHON=$PYTHON is no Python 3.10 or later with the venv module; name another one"
            return 1
        fi
    done
    say "no Python 3.10 or later with the venv module here; cure: apt-get install python3-venv, or set PYTHON=/path/to/python3"
    return 1
}

# System packages that are wanted, not needed: installed where that takes no password, else missed in one line each.
wanted=(tc:iproute2 c++:g++) # tool:package
lost() {
    case $1 in
    tc) echo "no shaped links, so programs run on loopback" ;;
    *) echo "no C++ kernels, so the PyTorch versions of them run" ;;
    esac
}
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }
install_packages() {
    local pair packages=()
    for pair in "${wanted[@]}"; do has "${pair%%:*}" || packages+=("${pair#*:}"); done
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "${COMPCOMM_NO_APT:-0}" != 1 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing system packages with apt-get: ${packages[*]} (COMPCOMM_NO_APT=1 leaves them out)"
        export DEBIAN_FRONTEND=noninteractive
        timeout 120 apt-get install -y -qq "${packages[@]}" >/dev/null 2>&1 || {
            timeout 120 apt-get update -qq >/dev/null 2>&1 || true
            timeout 120 apt-get install -y -qq "${packages[@]}" >/dev/null 2>&1 || true
        }
    fi
    for pair in "${wanted[@]}"; do
        has "${pair%%:*}" || say "no \`${pair%%:*}\` here (${pair#*:} is not installed): $(lost "${pair%%:*}")"
    done
}

extras=$(printf '%s\n' "$@" | sort -u | paste -sd,)
mkdir -p build
if command -v flock >/dev/null; then # two scripts that start together must not install into each other
    exec 9>build/setup.lock
    flock 9
fi

install_packages

if ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

sum=$(
    {
        .venv/bin/python -c 'import sys; print(sys.version, sys.prefix)'
        command -v c++ g++ clang++ || true
        find pyproject.toml launch/constraints.txt launch/setup.sh csrc -type f -print0 | sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1
)
stamp=.venv/compcomm-$extras.sha256
if [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ]; then
    say "installing compcomm[$extras]: the first time it takes minutes, most of them for torch"
    quiet=()
    [ -t 2 ] && [ -z "${CI:-}" ] || quiet=(--quiet --quiet --progress-bar off) # errors alone
    .venv/bin/python -m pip install "${quiet[@]}" --no-input --disable-pip-version-check --root-user-action ignore \
        -c "${COMPCOMM_CONSTRAINTS:-launch/constraints.txt}" -e ".${extras:+[$extras]}" >&2
    if has c++ && ! .venv/bin/python -c 'import sys, compcomm.ops.native as n; sys.exit(not n.available())' 2>/dev/null; then
        say "the C++ kernels did not build: PyTorch versions run, slowly; cure: see why with .venv/bin/pip install -v -e ."
    fi
    printf '%s\n' "$sum" >"$stamp"
    grep -L "$sum" .venv/compcomm-*.sha256 | xargs -r rm # what other extras came with is overwritten now
fi
