#!/bin/sh
# A guest without a virtual machine: this computer's own programs, below a layer with cloud-init,
# in namespaces that go when this ends. Run by unshare; see guest.rs for what is in $1.
set -eu
top=$1 layer=$2 agent=$3

mount --make-rprivate /
root=$top/root
mount -t tmpfs -o mode=755 tmpfs "$root"
for folder in usr etc var; do
    mkdir -p "$root/$folder" "$top/disk/$folder" "$top/work/$folder"
    mount -t overlay overlay "$root/$folder" \
        -o "lowerdir=$layer/$folder:/$folder,upperdir=$top/disk/$folder,workdir=$top/work/$folder"
done
for link in /bin /sbin /lib /lib32 /lib64 /libx32; do
    [ ! -L "$link" ] || ln -s "$(readlink "$link")" "$root$link"
done
mkdir -p "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/dev" "$root/mnt"
for folder in root home; do
    mkdir -p "$root/$folder" "$top/disk/$folder"
    mount --bind "$top/disk/$folder" "$root/$folder"
done
mount -t proc proc "$root/proc"
for folder in run tmp dev; do
    mount -t tmpfs tmpfs "$root/$folder"
done
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s "fd/${number%:*}" "$root/dev/${number#*:}"
done
ln -s null "$root/dev/console"

# The devices of the namespace, but the firmware and the virtio ports of the guest.
mount -t sysfs sysfs "$top/sys"
mount -t tmpfs tmpfs "$root/sys"
for real in "$top"/sys/* "$top"/sys/class/*; do
    name=${real#"$top/sys/"}
    case $name in class | class/dmi | class/virtio-ports) continue ;; esac
    [ -d "$real" ] || continue
    mkdir -p "$root/sys/$name"
    mount --bind "$real" "$root/sys/$name"
done
cp -r "$top/hints/." "$root/sys/class"

mkdir -p "$root/run/systemd/system" "$root/run/host"
mount --bind "$top/host" "$root/run/host"
touch "$root/usr/bin/vsock-agent"
mount --bind "$agent" "$root/usr/bin/vsock-agent"

ip link set lo up
ip link add eth0 address 00:16:3e:00:00:01 type veth peer name dhcp0
ip link set dhcp0 up
ip link set eth0 up
ip address add 10.9.0.1/24 dev dhcp0

exec chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
    HOME=/root LC_ALL=C.UTF-8 /bin/sh -u /run/host/boot.sh
