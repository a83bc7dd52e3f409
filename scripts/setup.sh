# Sourced by the scripts beside it. Makes .venv next to pyproject.toml and installs the pinned set into
# it, once; afterwards `$root` is the checkout and `$venv/bin` holds its programs.
#
# $venv/xftrain-stamp says what the environment holds. It reads `unfinished` from the first moment to
# the last, so an interrupted install is never taken for a finished one.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/xftrain-stamp

say() { printf 'xftrain: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

is_new_enough() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prints the Python to make the environment with: $PYTHON, or the first of the usual names that will do.
find_python() {
  local name names=(python3 python3.14 python3.13 python3.12 python3.11)
  [[ -z ${PYTHON:-} ]] || names=("$PYTHON")
  for name in "${names[@]}"; do
    if is_new_enough "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  name=${names[0]}
  if command -v "$name" >/dev/null; then
    die "Python 3.11 or newer is needed, but $name is $("$name" -V 2>&1); install one and name it, as in PYTHON=/usr/bin/python3.11 $0"
  fi
  die "$name was not found; install Python 3.11 or newer, or name yours, as in PYTHON=/usr/bin/python3.11 $0"
}

# The same for the same files in the same place: an environment does not survive being moved.
wanted_stamp() { printf '%s %s\n' "$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)" "$root"; }

# $PYTHON, where given, must also be the version that the environment was made with.
is_ready() {
  [[ -f $stamp && $(<"$stamp") == "$(wanted_stamp)" && -x $venv/bin/python ]] || return 1
  local version='import sys; print(sys.version_info[:2])'
  [[ -z ${PYTHON:-} || $("$PYTHON" -I -c "$version") == "$("$venv/bin/python" -I -c "$version")" ]]
}

make_environment() {
  local python log=$venv/install.log
  python=$(find_python) || exit 1
  if [[ -e $venv && ! -f $stamp ]]; then
    die "$venv exists and was not made by this script; move it away, or go on with yours: $venv/bin/pip install -c constraints.txt -e '.[dev]' && $venv/bin/python -m xftrain"
  fi
  say "installing the pinned packages into $venv, once (a few minutes; torch is the largest)"
  rm -rf "$venv"
  mkdir "$venv"
  echo unfinished >"$stamp"
  if ! "$python" -I -m venv "$venv" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    die "$python could not make a virtual environment (above); Debian and Ubuntu keep that in the package python3-venv"
  fi
  if ! (cd "$root" && "$venv/bin/python" -I -u -m pip install --disable-pip-version-check \
    --progress-bar off -c constraints.txt -e '.[dev]' 2>&1) | tee -a "$log" | show_downloads; then
    grep '^ERROR' "$log" >&2 || tail -n 5 "$log" >&2
    die "pip failed (above; all of it in $log); once the cause is gone, the same command starts afresh"
  fi
  "$venv/bin/python" -I -m pip check >>"$log" || die "the installed packages contradict each other; see the end of $log"
  wanted_stamp >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "installed"
}

# Of pip's output, the downloads of 10 MB and more: what takes the time.
show_downloads() {
  awk '/^ *Downloading .*\([0-9.]+ [MG]B\)/ && /[0-9][0-9][0-9.]* MB|GB/ { print "xftrain: " tolower($1), $2, $3, $4; fflush() }
       /^Installing collected/ { print "xftrain: unpacking"; fflush() }' >&2
}

ensure_environment() {
  is_ready && return
  if command -v flock >/dev/null; then # two first starts at the same time: the second waits
    exec {lock}>"$root/.venv.lock"
    flock -n "$lock" || { say "another start is installing; waiting for it" && flock "$lock"; } || true
  fi
  is_ready || make_environment
  [[ -z ${lock:-} ]] || exec {lock}>&-
}

ensure_environment
