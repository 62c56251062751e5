# Sourced by the scripts that must run on a fresh machine. dime_environment sets PYTHON to an interpreter that has what
# pyproject.toml lists: the active one if it does; else packages are installed into a virtual environment at $DIME_VENV
# (.venv in the project unless set). Its arguments are those of requirements.py: the extras that are needed.

dime_environment() {
    local root venv missing
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    PYTHON="${PYTHON:-python3}"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "Python 3.10 or newer is needed, $("$PYTHON" --version 2>&1) was found; set PYTHON to a newer one" >&2
        return 2
    }
    [ -z "$("$PYTHON" "$root/tools/requirements.py" "$@")" ] && return

    venv="${DIME_VENV:-$root/.venv}"
    mkdir -p "$(dirname "$venv")" || return
    # Who comes second waits, also for what a killed script has left running. The file holds text while the
    # environment is being changed: where it still does, that was interrupted, and nothing in there can be trusted.
    exec 9>>"$venv.lock" || return
    ! command -v flock >/dev/null || flock 9
    if [ -s "$venv.lock" ]; then
        echo "$venv was left half-made by an installation that did not finish: it is made anew"
        rm -rf "$venv"
    fi
    if [ ! -x "$venv/bin/python" ] || ! missing="$("$venv/bin/python" "$root/tools/requirements.py" "$@")" ||
        [ -n "$missing" ]; then
        echo "being changed" >"$venv.lock"
        _dime_install "$venv" "$root/tools/requirements.py" "$@" || return
        : >"$venv.lock"
    fi
    exec 9>&-
    PYTHON="$venv/bin/python"
}

_dime_install() { # VENV REQUIREMENTS.PY [EXTRA ...]
    local venv="$1" missing
    if [ -x "$venv/bin/python" ] && ! _dime_pip --version >/dev/null 2>&1; then
        # the system lacked it then, or whoever made the environment wanted none
        "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || echo "$venv has no pip: it is made anew"
    fi
    _dime_pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$venv" || return
    missing="$("$venv/bin/python" "${@:2}")" || return
    echo "Installing into $venv (PyTorch is large: about a minute on a fast line): $(echo $missing)"
    # all in one call, so that torch and torchvision are chosen to fit each other
    echo "$missing" | _dime_pip install --quiet --disable-pip-version-check -r /dev/stdin
}

_dime_pip() { "$venv/bin/python" -m pip "$@"; }
