#!/bin/sh
# Installs or upgrades edgeopt as a systemd service on this device. Run it as root from a checkout; again to upgrade.
#   deploy/install.sh [--wheels DIR] [--package WHEEL] [--no-start]
# --wheels DIR     take every package from DIR and nothing from the network (fill it with "pip download" elsewhere)
# --package WHEEL  install this wheel instead of building the checkout
# --no-start       leave the service stopped
# An existing /etc/edgeopt/edgeopt.yaml is never touched, and neither is /var/lib/edgeopt.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
prefix=/opt/edgeopt
wheels='' package=$here start=yes
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=${2:?--wheels needs a folder}; shift 2 ;;
        --package) package=${2:?--package needs a wheel}; shift 2 ;;
        --no-start) start=no; shift ;;
        *) echo "install.sh: unknown argument $1 (see the head of this file)" >&2; exit 2 ;;
    esac
done
[ "$(id -u)" = 0 ] || { echo "install.sh: this needs root" >&2; exit 1; }
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "install.sh: python3 is older than 3.11" >&2; exit 1; }

systemctl stop edgeopt.service 2>/dev/null || true  # an upgrade: its job goes back into the queue

echo "1/4 package into $prefix"
[ -x "$prefix/bin/python" ] || python3 -m venv "$prefix"
set -- install --quiet --disable-pip-version-check --upgrade
[ ! -f "$here/constraints.txt" ] || set -- "$@" --constraint "$here/constraints.txt"
[ -z "$wheels" ] || set -- "$@" --no-index --find-links "$wheels"
"$prefix/bin/pip" uninstall --quiet --yes edgeopt 2>/dev/null || true  # or pip keeps it where only the version is the same
"$prefix/bin/pip" "$@" "$package"
# The service cannot write into its own installation, so the bytecode is made now.
"$prefix/bin/python" -m compileall -q "$prefix/lib" || true

echo "2/4 user, groups and folders"
install -D -m 0644 "$here/systemd/edgeopt.sysusers" /usr/lib/sysusers.d/edgeopt.conf
install -D -m 0644 "$here/systemd/edgeopt.tmpfiles" /usr/lib/tmpfiles.d/edgeopt.conf
systemd-sysusers edgeopt.conf
systemd-tmpfiles --create edgeopt.conf

echo "3/4 configuration"
if [ -e /etc/edgeopt/edgeopt.yaml ]; then
    echo "    /etc/edgeopt/edgeopt.yaml is kept as it is"
else
    install -d -m 0750 -g edgeopt /etc/edgeopt
    install -m 0640 -g edgeopt "$here/deploy/edgeopt.yaml" /etc/edgeopt/edgeopt.yaml
fi
"$prefix/bin/edgeopt" config check /etc/edgeopt/edgeopt.yaml

echo "4/4 service"
install -D -m 0644 "$here/systemd/edgeopt.service" /etc/systemd/system/edgeopt.service
systemctl daemon-reload
systemctl enable --quiet edgeopt.service
if [ "$start" = yes ]; then
    systemctl restart edgeopt.service
    systemctl --no-pager --lines=0 status edgeopt.service
fi
echo "done: drop models into /var/lib/edgeopt/inbox (members of edgeopt-drop), read /var/lib/edgeopt/published"
