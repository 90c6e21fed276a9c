#!/bin/sh
# Run by systemd beside the service: what the hardened unit must still be able to do.
set -ex
for address in 1 2 3; do
    ip addr add "192.0.2.$address/32" dev lo
done
cd /usr/share/doc/culvert
python3 -m http.server 8000 2>/dev/null &

# Until something holds, at most half a minute.
await() {
    for _ in $(seq 150); do
        if "$@"; then return; fi
        sleep 0.2
    done
    echo "in vain: $*"
    exit 1
}
fetch() { curl -sS --max-time 5 -o /dev/null "http://$1/README.md"; }
steered() { fetch 192.0.2.2 && culvert status --json | grep -q '"arrived_steered":[1-9]'; }
main() { systemctl show -P MainPID culvert; }
runs_anew() { [ "$(main)" != "$1" ] && [ "$(main)" != 0 ] && systemctl --quiet is-active culvert; }

await fetch 192.0.2.1:8000
# Relayed until the listener is found.
await steered
await fetch 192.0.2.3
await grep -q '"rule":"all"' /var/log/culvert/access.json
# `refuse` is pinned.
[ -n "$(ls /sys/fs/bpf/culvert)" ]
grep -q 'NoNewPrivs:.*1' "/proc/$(main)/status"
grep -q 'Seccomp:.*2' "/proc/$(main)/status"

first=$(main)
systemctl reload culvert
await grep -q ' reloaded ' /results/log
[ "$(main)" = "$first" ]
fetch 192.0.2.1:8000

kill -KILL "$first"
await runs_anew "$first"
await fetch 192.0.2.1:8000
second=$(main)
# Hung: systemd hears nothing any more.
kill -STOP "$second"
await runs_anew "$second"
await fetch 192.0.2.1:8000

cd /etc/systemd/system/culvert.service.d
sed 's/^WatchdogSec=.*/WatchdogSec=20s/' -i probe.conf
mv takeover.disabled takeover.conf
systemctl daemon-reload
systemctl restart culvert
third=$(main)
systemctl reload culvert
await runs_anew "$third"
await fetch 192.0.2.1:8000

systemctl stop culvert
[ "$(systemctl show -P Result culvert)" = success ]
[ ! -e /sys/fs/bpf/culvert ]
echo passed
