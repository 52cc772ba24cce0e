# Sourced by the other scripts, from the repository root: makes .venv and fills it.
# set_up [EXTRA]   installs requirements.txt, with EXTRA also that group of pyproject.toml; does nothing when up to date.

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  echo "Python 3.11 or later is needed; python3 here is: $(python3 --version 2>&1 || true)." >&2
  echo "Install one (apt install python3.12 python3.12-venv; brew install python@3.12) or name it: PYTHON=/path/to/python3.12" >&2
  return 2
}

set_up() {
  local extra=${1:-} python stamp wanted
  if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "$python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2
      return 2
    fi
  fi
  # The stamp is a copy of what was installed from, so an edit of either file installs again and nothing else does.
  stamp=.venv/installed${extra:+-$extra}
  wanted=$(cat requirements.txt; [ -z "$extra" ] || cat pyproject.toml)
  if [ "$wanted" != "$(cat "$stamp" 2>/dev/null || true)" ]; then
    echo "installing requirements.txt${extra:+ and the extra '$extra'} (once; a minute or two)"
    # A start that was interrupted while it made .venv left one without pip, as uv does.
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! .venv/bin/python -m ensurepip >/dev/null; then
      echo ".venv has no pip, and it cannot be put there: remove .venv and start again" >&2
      return 2
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || return
    if [ -n "$extra" ]; then
      .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" || return
    fi
    printf '%s\n' "$wanted" >"$stamp"
  fi
  # An installed libtpu without a TPU makes jax wait for one; a machine with a TPU sets JAX_PLATFORMS=tpu itself.
  if [ -z "${JAX_PLATFORMS:-}" ] && [ ! -e /dev/accel0 ] && [ ! -e /dev/vfio/0 ] && has libtpu; then
    if [ -e /dev/nvidia0 ] && { has jax_cuda13_plugin || has jax_cuda12_plugin; }; then
      export JAX_PLATFORMS=cuda,cpu
    else
      export JAX_PLATFORMS=cpu
    fi
  fi
}

has() {
  .venv/bin/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec(sys.argv[1]))' "$1"
}
