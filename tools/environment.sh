# Sourced by the scripts that must run on a fresh machine, from the project's root. dime_environment sets PYTHON to an
# interpreter that has what pyproject.toml lists: the active one if it does; else packages are installed into a virtual
# environment at $DIME_VENV (.venv unless set). Its arguments name the extras that are needed.

dime_environment() {
    PYTHON="${PYTHON:-python3}"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "Python 3.10 or newer is needed, $("$PYTHON" --version 2>&1) was found; set PYTHON to a newer one" >&2
        return 2
    }
    [ -z "$("$PYTHON" tools/requirements.py "$@")" ] && return

    local venv="${DIME_VENV:-.venv}" missing
    [ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv" || return
    PYTHON="$venv/bin/python"
    missing="$("$PYTHON" tools/requirements.py "$@")" || return
    if [ -n "$missing" ]; then
        echo "Installing into $venv (PyTorch is large: about a minute on a fast line): $(echo $missing)"
        # both in one call, so that torch and torchvision are chosen to fit each other
        echo "$missing" | "$PYTHON" -m pip install --quiet --disable-pip-version-check -r /dev/stdin || return
    fi
}
