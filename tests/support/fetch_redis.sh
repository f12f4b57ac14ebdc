#!/usr/bin/env bash
# Put redis-server, and valkey-server as a second one (7.2 and newer: WAITAOF), into the environment given ($1, default .venv).
#
# The set-up calls it. The packages are the distribution's own, fetched and checked by apt-get with lists of its own, and unpacked into
# $1/redis: no root is needed, nothing is installed or started, nothing outside $1 is changed. What is on the PATH already is left to be
# used. It never fails the set-up: what cannot be had is said in one line, and the tests that need it say so again.
set -u
venv=$(cd "${1:-.venv}" && pwd) || exit 0
home=$venv/redis

have() { [ -x "$venv/bin/$1" ] || command -v "$1" >/dev/null 2>&1; }

wanted=()
for server in redis-server valkey-server; do have "$server" || wanted+=("$server"); done
[ ${#wanted[@]} -gt 0 ] || exit 0

missing() {
    rm -rf "$home/apt"
    for server in "${wanted[@]}"; do
        have "$server" || echo "no $server: $1. Tests that need it will be skipped; \`make redis\` tries again" >&2
    done
    exit 0
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || missing "this machine has no apt-get; install it by hand"

rm -rf "$home/apt"
mkdir -p "$home/apt/lists/partial" "$home/apt/archives/partial" "$home/apt/parts"
cp /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list "$home/apt/parts/" 2>/dev/null
cat /etc/apt/sources.list >"$home/apt/sources.list" 2>/dev/null || : >"$home/apt/sources.list"
options=(
    -qq -o "Dir::Etc::sourcelist=$home/apt/sources.list" -o "Dir::Etc::sourceparts=$home/apt/parts"
    -o "Dir::State::lists=$home/apt/lists" -o "Dir::Cache=$home/apt" -o "Dir::Log=$home/apt"
    -o Debug::NoLocking=1 -o Acquire::Languages=none -o APT::Sandbox::User= -o Acquire::http::Timeout=20 -o Acquire::Retries=1
)
update() { timeout 120 apt-get "${options[@]}" update >"$home/apt/update.log" 2>&1; }
offered() { apt-cache "${options[@]}" madison "$1" 2>/dev/null | grep -q .; }

update || missing "apt-get could not read its sources"
. /etc/os-release
if [ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] && ! offered valkey-server; then
    mirror=$(apt-get "${options[@]}" indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" | head -1)
    [ -z "$mirror" ] || echo "deb $mirror $VERSION_CODENAME-backports main" >>"$home/apt/sources.list"
    update || true  # without backports there is no Valkey, but still a Redis
fi

for server in "${wanted[@]}"; do
    offered "$server" || continue
    timeout 120 apt-get "${options[@]}" -y --no-install-recommends --download-only install "$server" \
        >"$home/apt/install.log" 2>&1 || continue
    mkdir -p "$home/$server"
    for package in "$home"/apt/archives/*.deb; do dpkg-deb -x "$package" "$home/$server"; done
    rm -f "$home"/apt/archives/*.deb
    libraries=$(find "$home/$server" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$libraries" "$home/$server/usr/bin/$server" >"$venv/bin/$server"
    chmod +x "$venv/bin/$server"
    "$venv/bin/$server" --version || rm -f "$venv/bin/$server"
done
missing "apt-get cannot have it from this machine's sources"
