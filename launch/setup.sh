#!/usr/bin/env bash
# Makes or reuses .venv and installs compcomm with the extras named as arguments: bash launch/setup.sh test bench
#
# The kernels are compiled while pip fetches everything else: for this machine's instruction set alone, or for all that it
# can run where tests compare them (extras test and dev; $CC_ISAS chooses), and for GPUs only where there is one
# ($CC_BUILD_CUDA chooses). What the compiler said is in build/setup.log.
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

# nvcc takes a minute, for nothing where there is no GPU.
if [ -z "${CC_BUILD_CUDA:-}" ] && ! nvidia-smi -L 2>/dev/null | grep -q .; then export CC_BUILD_CUDA=off; fi

sum=$(
    {
        .venv/bin/python -c 'import sys; print(sys.version, sys.prefix)'
        command -v c++ g++ clang++ || true
        echo "${CC_BUILD_CUDA:-auto}"
        find pyproject.toml launch/constraints.txt launch/setup.sh csrc -type f -print0 | sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1
)
case ,$extras, in *,test,* | *,dev,*) sets=runnable ;; *) sets=native ;; esac
sets=${CC_ISAS:-$sets}
stamp=.venv/compcomm-$extras.sha256 built=.venv/compcomm-built
remembered() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
# What was built for tests serves all others: without this, test.sh and quickstart.sh would undo each other's build.
case $sets in native | runnable)
    for more in runnable all; do
        if remembered $built "$sum $more"; then sets=$more; fi
    done
    ;;
esac
if remembered "$stamp" "$sum" && remembered $built "$sum $sets"; then exit 0; fi

pip() {
    .venv/bin/python -m pip install --no-input --disable-pip-version-check --root-user-action ignore "$@"
}
requirements() { # all that the extras named by the arguments want, without the package itself
    .venv/bin/python - "$@" <<'END'
import re, sys

try:
    import tomllib
except ImportError:  # before Python 3.11
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]


def wanted(names):
    for name in names:
        if name not in extras:
            sys.exit(f"setup: no extra is called {name!r}; there are {', '.join(extras)}")
        for requirement in extras[name]:
            own = re.fullmatch(r"compcomm\[(.+)\]", requirement)
            yield from wanted(own[1].split(",")) if own else (requirement,)


print(*dict.fromkeys([*project["dependencies"], *wanted(sys.argv[1:])]), sep="\n")
END
}
log=build/setup.log
progress() { # how far the build is, from ninja's [9/34]: every tenth on a terminal, every quarter elsewhere
    local steps=4 said=0 seen now on=1
    [ -t 2 ] && [ -z "${CI:-}" ] && steps=10
    while [ $on = 1 ]; do
        kill -0 "$builder" 2>/dev/null || on=0
        seen=$(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -dc '0-9/') || true
        now=$((steps * ${seen:-0/1}))
        if [ $now -gt $said ]; then
            said=$now
            say "compiled $((100 * $seen)) % (${seen/\// of })"
        fi
        [ $on = 0 ] || sleep 1
    done
}

say "installing compcomm[$extras]: minutes, the first time; the C++ kernels are compiled meanwhile (see $log)"
requirements "$@" >build/requirements.txt
quiet=()
[ -t 2 ] && [ -z "${CI:-}" ] || quiet=(--quiet --quiet --progress-bar off) # errors alone
: >"$log"
CC_ISAS=$sets pip --verbose --no-deps -e . >"$log" 2>&1 &
builder=$!
trap 'kill "$builder" 2>/dev/null || true' EXIT
progress &
# Python compiles a module when it is first imported: doing that here, for all of torch, takes as long as unpacking it.
pip "${quiet[@]}" --no-compile -c "${COMPCOMM_CONSTRAINTS:-launch/constraints.txt}" -r build/requirements.txt >&2
wait "$builder" || {
    tail -n 20 "$log" >&2
    say "compcomm did not install: see above, and $log"
    exit 1
}
wait # for the last word about progress
trap - EXIT
if has c++ && ! .venv/bin/python -c 'import sys, compcomm.ops.native as n; sys.exit(not n.available())' 2>/dev/null; then
    say "the C++ kernels did not build: PyTorch versions run, slowly; cure: see why in $log"
fi
printf '%s\n' "$sum" >"$stamp"
printf '%s %s\n' "$sum" "$sets" >$built
grep -L "$sum" .venv/compcomm-*.sha256 | xargs -r rm # what other extras came with is overwritten now
