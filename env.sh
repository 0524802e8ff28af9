# Source this from the project's root (bash or zsh): it makes dagster, dg and gatehouse find the project and its state.
_gatehouse_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)"
if [ ! -x "$_gatehouse_root/.venv/bin/gatehouse" ]; then
  echo "Gatehouse is not installed yet: run 'make setup' in $_gatehouse_root first." >&2
else
  . "$_gatehouse_root/.venv/bin/activate"
  eval "$("$_gatehouse_root/.venv/bin/python" -m pipeline.paths)"
fi
unset _gatehouse_root
