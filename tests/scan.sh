#!/usr/bin/env bash
# Fails if a file of this repository names a package registry's host or a path of somebody's machine: both work only
# where they were written. Lock files are excepted, as cargo writes the registry's name there.
set -euo pipefail
cd "$(dirname "$0")/.."

hosts='(pypi|pythonhosted|registry\.npmjs|npmjs|repo1\.maven|repo\.maven|index\.crates|static\.crates|proxy\.golang|sum\.golang|(deb|security|snapshot|ftp)\.debian)\.(org|io|com)'
paths='(^|[^[:alnum:]._/~-])/(work|root|home/[a-z]+)/'

# New files count before they are committed.
if git ls-files -z --cached --others --exclude-standard -- . ':!*.lock' |
    xargs -0 grep -nIE -e "$hosts" -e "$paths" -- 2>/dev/null; then
    echo 'scan: the lines above name a registry host or a path of this machine' >&2
    exit 1
fi
