#!/bin/sh
# Starts systemd as the first process of namespaces of its own, over a copy-on-write view of this system in which the package is
# installed. Arguments: a folder, in which package.deb and probe.sh are and the results will be.
set -e
folder=$1
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder/view"
mkdir "$folder/view/upper" "$folder/view/work" "$folder/view/root"
root=$folder/view/root
mount -t overlay -o "lowerdir=/,upperdir=$folder/view/upper,workdir=$folder/view/work" overlay "$root"
mkdir -p "$root/results"
mount --bind "$folder" "$root/results"
chroot "$root" dpkg --no-triggers --install /results/package.deb

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
touch "$root/dev/console" "$folder/console"
mount --bind "$folder/console" "$root/dev/console"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ip link set lo up

# Nothing of this system's is started.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/rc*.d
cat > "$root/etc/systemd/system/probe.target" <<T
[Unit]
Requires=culvert.service probe.service
T
cat > "$root/etc/systemd/system/probe.service" <<T
[Unit]
After=culvert.service
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh /results/probe.sh
StandardOutput=append:/results/said
StandardError=append:/results/said
ExecStopPost=/bin/touch /results/done
T
mkdir -p "$root/etc/systemd/system/culvert.service.d"
cp "$root/usr/share/doc/culvert/examples/takeover.conf" "$root/etc/systemd/system/culvert.service.d/takeover.disabled"
cat > "$root/etc/systemd/system/culvert.service.d/probe.conf" <<T
[Unit]
DefaultDependencies=no
[Service]
WatchdogSec=4s
StandardError=append:/results/log
T
cat > "$root/etc/culvert/culvert.toml" <<T
[daemon]
access_log = { path = "/var/log/culvert/access.json", format = "json" }
[upstream.relay]
url = "direct://"
[[forward]]
name = "all"
match = { dest = "192.0.2.1" }
via = "relay"
on_relay_failure = "refuse"
[[reverse]]
name = "steered"
listen = "192.0.2.2:80"
via = "127.0.0.1:8000"
path = "steer"
[[reverse]]
name = "shown"
listen = "192.0.2.3:80"
via = "127.0.0.1:8000"
keep_source = true
T
cd "$root"
mkdir old
pivot_root . old
umount -l old
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=probe.target --log-target=console
