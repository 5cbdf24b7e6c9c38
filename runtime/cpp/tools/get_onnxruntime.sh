#!/usr/bin/env bash
# get_onnxruntime.sh FOLDER [PYTHON]: an ONNX Runtime to build against, from Debian's and PyPI's mirrors alone.
#
# The headers are those of Debian 13's libonnxruntime-dev, unpacked and not installed; their API is one that every later
# library serves. The library is that of the onnxruntime package of PYTHON, or of the newest wheel if it has none.
# Where GitHub can be reached, a release archive of microsoft/onnxruntime does as well.
set -euo pipefail
folder=$(realpath -m "$1")
python=${2:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder/include" "$folder/lib" "$work/lists/partial" "$work/cache/archives/partial"

echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' \
  >"$work/sources.list"
: >"$work/status"
apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
  -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$work" && "${apt[@]}" download libonnxruntime-dev)
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/headers"
cp "$work"/headers/usr/include/onnxruntime/*.h "$folder/include/"

find_package='import importlib.util as u; spec = u.find_spec("onnxruntime"); print(spec.submodule_search_locations[0] if spec else "")'
package=$("$python" -c "$find_package")
if [ -z "$package" ]; then
  "$python" -m pip download --quiet --no-deps --dest "$work" onnxruntime
  "$python" -m zipfile -e "$work"/onnxruntime-*.whl "$work/wheel"
  package=$work/wheel/onnxruntime
fi
cp "$package"/capi/libonnxruntime.so.1* "$folder/lib/libonnxruntime.so.1"
ln -sf libonnxruntime.so.1 "$folder/lib/libonnxruntime.so"
