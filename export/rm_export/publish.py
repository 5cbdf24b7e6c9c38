"""Files that join a bundle after its export: the folder is a whole bundle at every instant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from rm_export.bundle import replace_file
from rm_export.errors import ExportError
from rm_runtime.bundle import MANIFEST_NAME, Bundle, open_bundle
from rm_runtime.manifest import FileRecord, Manifest

Change = Callable[[Manifest], Manifest]


def publish(
    bundle: Bundle,
    replaced: Collection[str],
    put: Callable[[], None],
    records: Mapping[str, FileRecord],
    forgotten: Change,
    listed: Change,
) -> None:
    """Put files into the bundle and list them.

    A listed file must have its listed size, so the manifest first forgets what changes (`replaced` files, and what
    `forgotten` takes out), then `put` puts the files into place, then the manifest lists them (`records`, and what
    `listed` adds). It is read anew: others may have added to the bundle meanwhile.
    Raises ExportError if the bundle is not the one that was opened.
    """
    manifest = open_bundle(bundle.path).manifest
    others = {name: record for name, record in manifest.files.items() if name not in replaced}
    known = {name: record for name, record in bundle.manifest.files.items() if name not in replaced}
    if any(others.get(name) != record for name, record in known.items()):
        raise ExportError(f"{bundle.path} was replaced in the meantime; run the command again")
    path = bundle.path / MANIFEST_NAME
    without = forgotten(replace(manifest, files=others))
    replace_file(path, without.to_json().encode())
    put()
    replace_file(path, listed(replace(without, files={**others, **records})).to_json().encode())
