#!/bin/sh
# Brings Debian's etcd into .etcd, where the tests find it. It is unpacked and not installed: installing starts a service.
# Where that is not possible, one line says why, and the tests that need etcd are skipped.
set -u
cd -- "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)" || exit 1

is_there() { command -v etcd >/dev/null && command -v etcdctl >/dev/null; }
PATH=$PATH:$PWD/.etcd/usr/bin
is_there && exit 0

new=$(mktemp -d .etcd.XXXXXX) || exit 0
trap 'rm -rf "$new"' EXIT
bring() (
	command -v apt-get >/dev/null || { echo "there is no apt-get"; exit 1; }
	cd "$new" || exit 1
	timeout 60 apt-get download etcd-server etcd-client 2>&1 >/dev/null | grep '^E:' | head -n 1
	for package in *.deb; do
		[ -e "$package" ] && dpkg -x "$package" . && rm "$package"
	done
)
why=$(bring)
chmod 755 "$new"
PATH=$PATH:$PWD/$new/usr/bin
if is_there; then
	rm -rf .etcd && mv "$new" .etcd
else
	echo "etcd could not be brought, so the tests on it are skipped: ${why:-unknown}" >&2
fi
